"""Files of requests in OpenAI's batch format: what an input asks, what an output has already.

A line of input is `{"custom_id", "method", "url", "body"}`; one of output `{"id", "custom_id",
"response": {"status_code", "request_id", "body"}, "error"}`, in the order in which they finish. Of
each input line only its place and some hashes are kept in memory, so that files may be long.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from ockham.core.errors import ConfigError, OckhamError
from ockham.core.numbers import shown
from ockham.core.owned_files import USUAL_FILE, NotOurs, open_own

LEVELS = (64, 256, 1024, 4096, 16384)
"""Characters of a prompt by whose hashes lines are sorted: those that begin alike come together."""


class BatchLine(msgspec.Struct, forbid_unknown_fields=True):
    """One request. What its body may hold is the route's to say."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class BatchResponse(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchError(msgspec.Struct):
    """`line` is given for a line of input that has no readable custom_id."""

    code: str
    message: str
    line: int | None = None


class BatchResult(msgspec.Struct):
    """One line of output."""

    id: str
    custom_id: str | None
    response: BatchResponse | None
    error: BatchError | None


_START = b'{"id":"batch_req_'
"""What every line of an output begins with."""
_LEAST_START = b'{"id":"'
"""The same, of a line that stands behind results."""


class _Written(msgspec.Struct):
    """What a resumed run must know of a line of output."""

    custom_id: str | None
    error: BatchError | None = None


class BatchInput:
    """The requests of a file. Raises ConfigError if it cannot be read, is empty, or two lines have
    the same custom_id."""

    def __init__(self, path: Path, name: str | None = None, most: int | None = None) -> None:
        """`name` is what errors call the file, its path by default; `most` bounds its requests."""
        self._name = name or str(path)
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self._name} cannot be read ({error.strerror}).") from error
        self._offsets = array("Q")
        self._numbers = array("Q")
        """Line numbers, counted from 1; empty lines are none."""
        self._hashes = array("Q")
        self._ids: dict[bytes, int] = {}
        offset = 0
        for number, line in enumerate(self._file, 1):
            if line.strip():
                if most is not None and len(self._offsets) >= most:
                    raise ConfigError(f"{self._name} has more than {most} requests; split it.")
                self._take(number, offset, line)
            offset += len(line)
        if not self._offsets:
            raise ConfigError(f"{self._name} holds no request; write one JSON object a line.")

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, custom_id: str) -> bool:
        return _digest(custom_id) in self._ids

    def _take(self, number: int, offset: int, line: bytes) -> None:
        text = ""
        try:
            request = parse(line)
        except ValueError:
            pass  # it becomes an entry that says so
        else:
            digest = _digest(request.custom_id)
            if digest in self._ids:
                raise ConfigError(
                    f"{self._name}, line {number}: custom_id {shown(request.custom_id)} is that of "
                    f"line {self._ids[digest]} too; give each request its own."
                )
            self._ids[digest] = number
            text = _prompt_text(request.body)
        self._offsets.append(offset)
        self._numbers.append(number)
        for level in LEVELS:
            self._hashes.append(int.from_bytes(_digest(text[:level])[:8], "little"))

    def lines(self, done: Done) -> Iterator[tuple[int, bytes]]:
        """(line number, line) of each that is not done, those that begin alike together."""
        hashes = np.frombuffer(self._hashes, np.uint64).reshape(-1, len(LEVELS))
        for place in np.lexsort(hashes.T[::-1]).tolist():
            number = self._numbers[place]
            self._file.seek(self._offsets[place])
            line = self._file.readline()
            if not done.has(number, line):
                yield number, line


class Done:
    """What the output of an earlier run holds."""

    def __init__(self) -> None:
        self._ids: set[bytes] = set()
        self._numbers: set[int] = set()
        self.failed = 0

    def __len__(self) -> int:
        return len(self._ids) + len(self._numbers)

    def add(self, written: _Written) -> None:
        self.failed += written.error is not None
        if written.custom_id is not None:
            self._ids.add(_digest(written.custom_id))
        elif written.error is not None and written.error.line is not None:
            self._numbers.add(written.error.line)

    def has(self, number: int, line: bytes) -> bool:
        try:
            return _digest(parse(line).custom_id) in self._ids
        except ValueError:
            return number in self._numbers


class BatchOutput:
    """The file of results, to which one process at a time appends whole lines.

    Raises ConfigError if it cannot be written, is being written by another process, or holds what
    is no result of `given`. What a kill left of a line is dropped; what else an output ends with is
    another's, and it is refused.
    """

    def __init__(self, path: Path, given: BatchInput) -> None:
        self._path = path
        self.done = Done()
        try:
            # A link is the user's to give; what is no file would be waited for, or cannot be cut.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = open_own(os.path.realpath(path), flags, USUAL_FILE)
        except NotOurs as error:
            raise ConfigError(
                f"{path} is no regular file; name one, to which a later run can add."
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}).") from error
        try:
            self._lock()
            self._read(given)
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{self._path} is being written by another process; wait for it, or choose another "
                "output."
            ) from error

    def _read(self, given: BatchInput) -> None:
        whole = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    start = _LEAST_START if whole else _START
                    if start.startswith(line[: len(start)]):
                        break
                    raise ConfigError(
                        f"{self._path}, line {number} is no result of a batch; choose another "
                        "output."
                    )
                try:
                    written = msgspec.json.decode(line, type=_Written)
                except (msgspec.DecodeError, ValueError) as error:
                    raise ConfigError(
                        f"{self._path}, line {number} is no result of a batch ({error}); choose "
                        "another output."
                    ) from error
                if written.custom_id is not None and written.custom_id not in given:
                    raise ConfigError(
                        f"{self._path} holds a result for custom_id {shown(written.custom_id)}, "
                        "which the input does not have; choose another output."
                    )
                self.done.add(written)
                whole += len(line)
        os.ftruncate(self._file, whole)

    def write(self, result: BatchResult) -> int:
        """Append a line; its bytes. Raises OckhamError if it cannot be written whole."""
        line = msgspec.json.encode(result) + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise OckhamError(f"{self._path} cannot be written ({error.strerror}).") from error
        if written < len(line):
            raise OckhamError(
                f"{self._path} took {written} of {len(line)} bytes: is the disk full? Make room "
                "and run the same command again; it goes on where this one ended."
            )
        return written

    def close(self) -> None:
        os.close(self._file)


def parse(line: bytes) -> BatchLine:
    """Raises ValueError, with a reason, for a line that is no request."""
    try:
        return msgspec.json.decode(line, type=BatchLine)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _prompt_text(body: msgspec.Raw) -> str:
    """What the prompt begins with, as far as its sorting needs it."""
    try:
        content: Any = msgspec.json.decode(body)
        if not isinstance(content, dict):
            return ""
        prompt = content.get("prompt", content.get("messages"))
        return prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return ""
