"""Packed weights on disk, so that a model is packed once and starts at once from then on.

    DIR/sources/IDENTITY.json    {"weights": DIGEST}
    DIR/DIGEST/model.safetensors a file of packed weights (see packed_layout.py)
    DIR/DIGEST/entry.json        the commit record: version, bytes of the file

An entry is named by the digest of its weights, so equal weights stand there once. IDENTITY stands
for the files of a checkpoint without reading them: inode, size, start and times of change of each,
config.json, the formats asked for, and the versions of packer and layout. Who writes to a file
changes its times, and cannot set back the one that the system keeps; files that changed within the
last second are not trusted, since that time has a grain. So a checkpoint that was changed is packed
anew; one that was only moved or copied is, too, but finds its entry again by its content.

An entry is written to a directory of another name, its commit record last, and then renamed. It is
checked whole whenever it is loaded: its size by the record, every byte by the digest. What a crash
left behind, or a disk damaged, is therefore noticed, removed and packed anew. One process writes at
a time (a lock on DIR/lock); readers need no lock, because what is removed stays readable to whoever
has opened it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ockham.core.errors import ModelError
from ockham.kernels.memory import as_bytes
from ockham.model.files import WeightsFile
from ockham.model.memory import readable
from ockham.model.packed_file import PackedFile
from ockham.model.packed_layout import VERSION, PackedWeights
from ockham.model.safetensors import SINGLE_FILE

PACKER = 2
"""Raised whenever some format packs the same weights into other bytes."""

LEAST_BYTES = 64 << 20
"""Weights that take less are packed in the time that it takes to find them here."""

ROOM_BYTES = 1 << 30
"""Bytes that are left free on the disk."""

GRAIN_NS = 1_000_000_000
"""Files that changed since may change again without another time of change."""

WRITE_BYTES = 4 << 20

RECORD = "entry.json"


def cache_directory(setting: str | None) -> Path | None:
    """Where packed weights are kept: what `--weight-cache` says ("off" for nowhere), else "packed"
    in $OCKHAM_CACHE, $XDG_CACHE_HOME/ockham or ~/.cache/ockham."""
    if setting == "off":
        return None
    if setting is not None:
        return Path(setting).expanduser()
    own, shared = os.environ.get("OCKHAM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(own) if own else Path(shared or Path.home() / ".cache") / "ockham"
    except RuntimeError:  # there is no home
        return None
    return base.expanduser() / "packed"


def identity_of(files: Sequence[WeightsFile], facts: Mapping[str, Any]) -> str | None:
    """What stands for the files, as said above, packed as the facts say; None if they changed so
    lately that nothing can."""
    identities = [file.identity() for file in files]
    if any(time.time_ns() - identity["changed_ns"] < GRAIN_NS for identity in identities):
        return None
    everything = {"files": identities, "version": VERSION, "packer": PACKER, **facts}
    encoded = json.dumps(everything, sort_keys=True, default=repr).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """Weights in the cache, which nobody has checked yet."""

    directory: Path
    digest: str

    def open(self) -> PackedFile:
        """Raises ModelError if it is not what was committed."""
        try:
            record = json.loads((self.directory / RECORD).read_text())
            file_bytes, version = record["bytes"], record["version"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ModelError(f"{self.directory / RECORD} cannot be read.") from None
        file = PackedFile(self.directory / SINGLE_FILE, "it will be packed again")
        if version == VERSION and file.file.nbytes == file_bytes:
            return file
        file.close()
        raise ModelError(f"{file.path} is not what {RECORD} says.")


class WeightCache:
    """A directory of packed weights that takes at most `most_bytes`.

    No method raises because of the disk: what cannot be kept is told in a sentence, and loading
    goes on.
    """

    def __init__(self, directory: Path, most_bytes: int, tell: Callable[[str], None]) -> None:
        self.directory = directory
        self._most_bytes = most_bytes
        self._tell = tell

    def find(self, identity: str) -> Entry | None:
        """What was packed from the files of this identity, if it is still there; counts as used."""
        try:
            digest = json.loads(self._source(identity).read_text())["weights"]
            entry = Entry(self.directory / digest, digest)
            if not (entry.directory / RECORD).exists():
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.directory / RECORD)
        return entry

    def discard(self, entry: Entry) -> None:
        """Remove an entry that is damaged."""
        with contextlib.suppress(OSError):
            _remove(entry.directory)

    def keep(
        self, identity: str, digest: str, packed: PackedWeights
    ) -> Callable[[threading.Event], None] | None:
        """The job that writes these weights; None if they are there or cannot be kept."""
        try:
            return self._keep(identity, digest, packed)
        except (OSError, ModelError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._tell(f"the packed weights are not kept in {self.directory}: {reason}.")
            return None

    def _keep(
        self, identity: str, digest: str, packed: PackedWeights
    ) -> Callable[[threading.Event], None] | None:
        (self.directory / "sources").mkdir(parents=True, exist_ok=True)
        lock = _Lock(self.directory / "lock")
        if not lock.taken:
            return None  # another process writes, perhaps the same; the next start will see
        try:
            if (self.directory / digest / RECORD).exists():
                self._write_source(identity, digest)
                lock.release()
                return None
            writing = _Writing(self.directory / ".partial", packed)
            self._make_room(writing.file_bytes)
        except BaseException:
            lock.release()
            raise

        def job(stop: threading.Event) -> None:
            try:
                if writing.write(stop):
                    os.replace(writing.directory, self.directory / digest)
                    self._write_source(identity, digest)
            except OSError as error:
                self._tell(f"writing packed weights to {self.directory} failed: {error.strerror}.")
            finally:
                writing.clear()
                lock.release()

        return job

    def _make_room(self, file_bytes: int) -> None:
        """Remove what was used least recently. Raises ModelError if that does not suffice."""
        if file_bytes > self._most_bytes:
            raise ModelError(
                f"they take {readable(file_bytes)}, and --weight-cache-bytes allows "
                f"{readable(self._most_bytes)}"
            )
        used = sorted(
            (record.stat().st_mtime_ns, _bytes_of(record.parent), record.parent)
            for record in self.directory.glob(f"*/{RECORD}")
        )
        total = sum(nbytes for _, nbytes, _ in used)
        while total + file_bytes > self._most_bytes:
            _, nbytes, directory = used.pop(0)
            _remove(directory)
            total -= nbytes
        free = shutil.disk_usage(self.directory).free
        if free < file_bytes + ROOM_BYTES:
            raise ModelError(f"they take {readable(file_bytes)}, and {readable(free)} are free")
        self._forget_sources()

    def _forget_sources(self) -> None:
        """Remove what points to entries that are gone."""
        for source in (self.directory / "sources").glob("*.json"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if (self.directory / json.loads(source.read_text())["weights"]).exists():
                    continue
            source.unlink(missing_ok=True)

    def _source(self, identity: str) -> Path:
        return self.directory / "sources" / f"{identity}.json"

    def _write_source(self, identity: str, digest: str) -> None:
        partial = self.directory / "sources" / ".partial"
        partial.write_text(json.dumps({"weights": digest}))
        os.replace(partial, self._source(identity))


class _Writing:
    """An entry while it is written, at a place where nobody takes it for one."""

    def __init__(self, directory: Path, packed: PackedWeights) -> None:
        self.directory = directory
        self._packed = packed
        self._layout = packed.layout()
        self._header = self._layout.header()
        self.file_bytes = len(self._header) + self._layout.data_bytes
        self.clear()  # what a process left that was killed

    def write(self, stop: threading.Event) -> bool:
        """Write all, the commit record last. False if it was stopped."""
        self.directory.mkdir()
        with open(self.directory / SINGLE_FILE, "wb", buffering=0) as file:
            file.write(self._header)
            for name, array in self._packed.arrays():
                memory = as_bytes(array).data
                place = len(self._header) + self._layout.start(name)
                for start in range(0, len(memory), WRITE_BYTES):
                    if stop.is_set():
                        return False
                    _write_at(file.fileno(), memory[start : start + WRITE_BYTES], place + start)
        record = {"version": VERSION, "bytes": self.file_bytes}
        (self.directory / RECORD).write_text(json.dumps(record))
        return True

    def clear(self) -> None:
        if self.directory.exists():
            shutil.rmtree(self.directory)


class _Lock:
    """A lock that the system releases when the process ends, however it does."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.taken = True
        except OSError:
            self.taken = False
            os.close(self._descriptor)

    def release(self) -> None:
        if self.taken:
            os.close(self._descriptor)
            self.taken = False


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _bytes_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _remove(directory: Path) -> None:
    """Remove an entry, its record first, so that what is left of it is none."""
    (directory / RECORD).unlink(missing_ok=True)
    shutil.rmtree(directory)
