"""Uploaded files and batches on the disk, in a directory of one server.

Each has a record, `ID.json`, and a file has its content, `ID.data`. Names are made here and never
by a caller; nothing else in the directory is read or removed. Records are held in memory too.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.owned_files import (
    NotOurs,
    hold,
    make_directory,
    open_own,
    read_own,
    remove_files,
    write_own,
)

MOST_FILES = 10_000
MOST_BATCHES = 2_000
"""Of all tenants together: records are held in memory."""
_RECORD = re.compile(r"(file|batch)-[0-9a-f]{24}\.json")
_PARTIAL = re.compile(r"file-[0-9a-f]{24}\.data")

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
RUNNING: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")


class StoredFile(msgspec.Struct, kw_only=True):
    """OpenAI's object of a file. `owner` is whose it is, which is told to nobody."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"
    owner: str = ""


class Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Fault(msgspec.Struct):
    """Why a batch failed as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, kw_only=True):
    """OpenAI's object of a batch. `results` is the file that results are added to while it runs,
    in the format of `ockham run-batch`."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = "validating"
    errors: list[Fault] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    metadata: dict[str, str] | None = None
    owner: str = ""
    results: str = ""


class Store:
    """The files and batches of a server. Raises ConfigError if the directory cannot be used, or
    another server uses it."""

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self.directory = directory
        self._most_bytes = most_bytes
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, Batch] = {}
        self._reserved_bytes = 0
        try:
            make_directory(directory)
            self._lock = hold(directory / "lock")
            self._load()
        except BlockingIOError as error:
            raise ConfigError(
                f"{directory} is used by another server; give each its own --batch-dir."
            ) from error
        except OSError as error:
            raise ConfigError(f"{directory} cannot be used ({error}).") from error

    def _load(self) -> None:
        for name in sorted(os.listdir(self.directory)):
            if not _RECORD.fullmatch(name):
                continue
            try:
                data = read_own(self.directory / name)
                if name.startswith("file-"):
                    file = msgspec.json.decode(data, type=StoredFile)
                    self.files[file.id] = file
                else:
                    batch = msgspec.json.decode(data, type=Batch)
                    self.batches[batch.id] = batch
            except (NotOurs, msgspec.DecodeError, FileNotFoundError):
                continue  # of something else, which stays where it is
        # An upload that a kill cut short has no record.
        kept = {f"{file_id}.data" for file_id in self.files}
        kept |= {batch.results for batch in self.batches.values()}
        lost = [n for n in os.listdir(self.directory) if _PARTIAL.fullmatch(n) and n not in kept]
        remove_files(self.directory, lost)

    def close(self) -> None:
        os.close(self._lock)

    @property
    def used_bytes(self) -> int:
        return self._reserved_bytes + sum(file.bytes for file in self.files.values())

    def check_room(self, more_bytes: int) -> None:
        """Raise InvalidRequest if so many bytes have no place beside what is kept."""
        if self.used_bytes + more_bytes > self._most_bytes:
            raise InvalidRequest(
                f"The files here have {self.used_bytes} of at most {self._most_bytes} bytes "
                "(--batch-dir-bytes); delete files that are not needed any more.",
                "file",
            )
        if len(self.files) >= MOST_FILES:
            raise InvalidRequest(
                f"There are {len(self.files)} files, at most {MOST_FILES}; delete some.", "file"
            )

    def grow(self, nbytes: int) -> None:
        """Count bytes of results that were written, or fewer than none that are gone. Raises
        InvalidRequest if there is no place for more."""
        self._reserved_bytes += nbytes
        if nbytes > 0 and self.used_bytes > self._most_bytes:
            raise InvalidRequest(
                f"The results of batches and the files here have more than {self._most_bytes} "
                "bytes (--batch-dir-bytes); delete files, and send the rest again."
            )

    def forget_oldest(self) -> None:
        """Remove the record of the oldest batch that is done; its files stay."""
        done = [batch for batch in self.batches.values() if batch.status not in RUNNING]
        if not done:
            raise InvalidRequest(f"There are {MOST_BATCHES} batches that are not done; wait.")
        oldest = min(done, key=lambda each: each.created_at)
        del self.batches[oldest.id]
        remove_files(self.directory, [f"{oldest.id}.json"])

    @contextlib.contextmanager
    def reserving(self, nbytes: int) -> Iterator[None]:
        """Hold the place of bytes that are about to be written. Raises what `check_room` does."""
        self.check_room(nbytes)
        self._reserved_bytes += nbytes
        try:
            yield
        finally:
            self._reserved_bytes -= nbytes

    def path(self, name: str) -> Path:
        """Where the content of a file lies, or a batch's results."""
        return self.directory / name

    def create(self) -> tuple[str, int]:
        """The id of a new file and a descriptor that its content is written to."""
        file_id = f"file-{secrets.token_hex(12)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        return file_id, open_own(self.path(f"{file_id}.data"), flags)

    def add(self, file: StoredFile) -> None:
        """Note a file whose content is written."""
        self._save(file.id, file)
        self.files[file.id] = file

    def discard(self, file_id: str) -> None:
        """Remove a file's content and record."""
        self.files.pop(file_id, None)
        remove_files(self.directory, [f"{file_id}.json", f"{file_id}.data"])

    def save(self, batch: Batch) -> None:
        self._save(batch.id, batch)
        self.batches[batch.id] = batch

    def _save(self, name: str, record: Any) -> None:
        write_own(self.path(f"{name}.json"), msgspec.json.encode(record))


def new_batch_id() -> str:
    return f"batch-{secrets.token_hex(12)}"


def now_s() -> int:
    return int(time.time())
