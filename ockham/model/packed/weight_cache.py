"""Packed weights on disk, so that a model is packed once and starts at once from then on.

    DIR/sources/IDENTITY.json    {"weights": DIGEST}
    DIR/DIGEST/model.safetensors a file of packed weights (see layout.py)
    DIR/DIGEST/entry.json        the commit record: version, bytes of the file, weights (DIGEST),
                                 and the model that was named when they were packed
    DIR/.partial-DIGEST-RANDOM/  an entry that is being written, with {"weights": DIGEST} in
                                 writing.json

An entry is named by the digest of its weights, so equal weights stand there once. IDENTITY stands
for the files of a checkpoint without reading them: inode, size, start and times of change of each,
config.json, the formats asked for, the layout, and the versions of packer and file. Who writes to a
file changes its times, and cannot set back the one that the system keeps; files that changed within
the last second are not trusted, since that time has a grain. So a checkpoint that was changed is
packed anew; one that was only moved or copied is, too, but finds its entry again by its content.

An entry is written to a directory of another name, its commit record last, and then renamed. It is
checked whole whenever it is loaded: its size by the record, every byte by the digest. What a crash
left behind, or a disk damaged, is therefore noticed, removed and packed anew. One process writes at
a time (a lock on DIR/lock); readers need no lock, because what is removed stays readable to whoever
has opened it. DIR may hold other files: what is no entry by its name and its record is neither
counted nor touched. What is written can be read by its owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError, ModelError
from ockham.core.owned_files import (
    PRIVATE_DIRECTORY,
    NotOurs,
    Owned,
    hold,
    make_directory,
    make_own_directory,
    named,
    open_file,
    open_own,
    read_own,
    write_own,
)
from ockham.core.units import readable
from ockham.kernels.memory import as_bytes
from ockham.model.files.safetensors import SINGLE_FILE
from ockham.model.files.weights_file import WeightsFile
from ockham.model.packed.file import PackedFile
from ockham.model.packed.layout import UNNAMED_LAYOUT, VERSION, PackedWeights

PACKER = 3
"""Raised whenever some format packs the same weights into other bytes."""

LEAST_BYTES = 64 << 20
"""Weights that take less are packed in the time that it takes to find them here."""

ROOM_BYTES = 1 << 30
"""Bytes that are left free on the disk."""

GRAIN_NS = 1_000_000_000
"""Files that changed since may change again without another time of change."""

WRITE_BYTES = 4 << 20

RECORD, WRITING = "entry.json", "writing.json"
SOURCES, LOCK = "sources", "lock"

_PARTIAL = re.compile(r"\.partial-(.+)-[0-9a-f]{16}")
_EARLIER_PARTIAL = ".partial"
"""Where earlier versions wrote: what begins as their files of weights do is theirs."""
_EARLIER_START = b'{"__metadata__": {"format": "ockham", '
_DIGEST = re.compile(r"[0-9a-f]{32}")
_SOURCE = re.compile(r"[0-9a-f]{32}\.json")


def _proves_entry(name: str, directory: int) -> bool:
    """The record names the directory; those of earlier versions name the size of its weights."""
    record = json.loads(read_own(RECORD, directory))
    if not _DIGEST.fullmatch(name) or not isinstance(record, dict):
        return False
    if not all(type(record.get(fact)) is int for fact in ("version", "bytes")):
        return False
    if "weights" in record:
        return bool(record["weights"] == name)
    facts = os.lstat(SINGLE_FILE, dir_fd=directory)
    return stat.S_ISREG(facts.st_mode) and facts.st_size == record["bytes"]


def _proves_partial(name: str, directory: int) -> bool:
    if name == _EARLIER_PARTIAL:
        with open_file(SINGLE_FILE, os.O_RDONLY, directory) as file:
            return os.pread(file, len(_EARLIER_START), 8) == _EARLIER_START
    found = _PARTIAL.fullmatch(name)
    if found is None:
        return False
    if not os.listdir(directory):
        return True  # the process was killed when it had just made it
    return bool(json.loads(read_own(WRITING, directory)) == {"weights": found[1]})


ENTRIES = Owned(RECORD, frozenset({SINGLE_FILE, WRITING}), _proves_entry)
PARTIALS = Owned(WRITING, frozenset({SINGLE_FILE, RECORD}), _proves_partial)


def cache_directory(setting: str | None) -> Path | None:
    """Where packed weights are kept: what `--weight-cache` says ("off" for nowhere), else "packed"
    in $OCKHAM_CACHE, $XDG_CACHE_HOME/ockham or ~/.cache/ockham. Raises ConfigError for the home of
    somebody unknown."""
    if setting == "off":
        return None
    own, shared = os.environ.get("OCKHAM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if setting is not None:
        return _without_tilde(Path(setting))
    if own:
        return _without_tilde(Path(own)) / "packed"
    try:
        return _without_tilde(Path(shared or Path.home() / ".cache")) / "ockham" / "packed"
    except RuntimeError:  # there is no home
        return None


def _without_tilde(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"the weight cache {path} cannot be used: there is no such home directory."
        ) from None


def identity_of(files: Sequence[WeightsFile], layout: str, facts: Mapping[str, Any]) -> str | None:
    """What stands for the files, as said above, packed in this layout and as the facts say; None if
    they changed so lately that nothing can."""
    identities = [file.identity() for file in files]
    if any(time.time_ns() - identity["changed_ns"] < GRAIN_NS for identity in identities):
        return None
    everything = {"files": identities, "version": VERSION, "packer": PACKER, **facts}
    if layout != UNNAMED_LAYOUT:
        everything["layout"] = layout
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
            record = json.loads(read_own(self.directory / RECORD))
            file_bytes, version = record["bytes"], record["version"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ModelError(f"{self.directory / RECORD} cannot be read.") from None
        try:
            os.close(open_own(self.directory / SINGLE_FILE, os.O_RDONLY))
        except NotOurs as error:
            raise ModelError(f"{self.directory}: {error.strerror}.") from None
        except OSError:
            pass  # opening it says so
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

    def __init__(
        self,
        directory: Path,
        most_bytes: int,
        tell: Callable[[str], None],
        model: str = "",
    ) -> None:
        """`model` is what the record of a new entry calls it, for who lists the entries."""
        self.directory = directory
        self._most_bytes = most_bytes
        self._tell = tell
        self._model = model

    def find(self, identity: str) -> Entry | None:
        """What was packed from the files of this identity, if it is still there; counts as used."""
        try:
            digest = json.loads(read_own(self._source(identity)))["weights"]
            entry = Entry(self.directory / digest, digest)
            if os.path.basename(digest) != digest or entry.directory.is_symlink():
                return None  # another place
            if not stat.S_ISREG((entry.directory / RECORD).lstat().st_mode):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.directory / RECORD)
            ENTRIES.make_private(entry.directory)
        return entry

    def discard(self, entry: Entry) -> None:
        """Remove an entry that is damaged, as far as it is one."""
        with contextlib.suppress(OSError):
            # Its record may be damaged too: that a source names it says whose it is.
            self._remove(entry.directory, known=bool(_DIGEST.fullmatch(entry.digest)))

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
        make_directory(self.directory)
        make_own_directory(self.directory / SOURCES)
        try:
            lock = hold(self.directory / LOCK)
        except BlockingIOError:
            return None  # another process writes, perhaps the same; the next start will see
        try:
            if ENTRIES.owns(self.directory / digest):
                self._write_source(identity, digest)
                os.close(lock)
                return None
            self._clear_place(self.directory / digest)
            writing = _Writing(self.directory, digest, packed, self._model)
            self._make_room(writing.file_bytes)
        except BaseException:
            os.close(lock)
            raise

        def job(stop: threading.Event) -> None:
            try:
                if writing.write(stop):
                    os.rename(writing.directory, self.directory / digest)
                    with contextlib.suppress(OSError):
                        os.unlink(self.directory / digest / WRITING)
                    self._write_source(identity, digest)
            except OSError as error:
                self._tell(f"writing packed weights to {self.directory} failed: {error.strerror}.")
            finally:
                writing.clear()
                os.close(lock)

        return job

    def _clear_place(self, entry: Path) -> None:
        """Remove what is left of an entry whose record is gone: its name, the digest of weights
        that are held in memory, says what it is. Raises NotOurs if something else stands there."""
        if os.path.lexists(entry) and ENTRIES.remove(entry, known=True):
            raise NotOurs(f"{entry.name} holds files that are not Ockham's")

    def _make_room(self, file_bytes: int) -> None:
        """Remove what was used least recently. Raises ModelError if that does not suffice."""
        if file_bytes > self._most_bytes:
            raise ModelError(
                f"they take {readable(file_bytes)}, and --weight-cache-bytes allows "
                f"{readable(self._most_bytes)}"
            )
        entries, leftovers, strangers = [], [], []
        for path in self.directory.iterdir():
            if ENTRIES.owns(path):
                used_ns = (path / RECORD).lstat().st_mtime_ns
                entries.append((used_ns, ENTRIES.nbytes(path), path))
            elif PARTIALS.owns(path):
                leftovers.append(path)
            elif path.name not in (SOURCES, LOCK):
                strangers.append(path.name)
        if strangers:
            self._tell(
                f"{self.directory} holds what is not Ockham's ({named(strangers)}): it is left "
                "alone, and not counted in --weight-cache-bytes."
            )
        for path in leftovers:  # this process holds the lock: nobody writes to them
            with contextlib.suppress(OSError):
                self._remove(path)
        total = sum(nbytes for _, nbytes, _ in entries)
        for _, nbytes, path in sorted(entries):
            if total + file_bytes <= self._most_bytes:
                break
            self._remove(path)
            total -= nbytes
        free = shutil.disk_usage(self.directory).free
        if free < file_bytes + ROOM_BYTES:
            raise ModelError(f"they take {readable(file_bytes)}, and {readable(free)} are free")
        self._forget_sources()

    def _remove(self, path: Path, known: bool = False) -> None:
        kind = PARTIALS if path.name.startswith(".partial") else ENTRIES
        left = kind.remove(path, known=known)
        if left:
            self._tell(f"{path} stays: {left[0]!a} in it is not Ockham's.")

    def _forget_sources(self) -> None:
        """Remove what points to entries that are gone."""
        for source in (self.directory / SOURCES).iterdir():
            with contextlib.suppress(OSError, ValueError):
                if not _SOURCE.fullmatch(source.name):
                    continue
                said = json.loads(read_own(source))
                if not isinstance(said, dict) or list(said) != ["weights"]:
                    continue
                digest = str(said["weights"])
                if _DIGEST.fullmatch(digest) and not (self.directory / digest).exists():
                    source.unlink()

    def _source(self, identity: str) -> Path:
        return self.directory / SOURCES / f"{identity}.json"

    def _write_source(self, identity: str, digest: str) -> None:
        write_own(self._source(identity), json.dumps({"weights": digest}).encode())


class _Writing:
    """An entry while it is written, at a place where nobody takes it for one."""

    def __init__(self, cache: Path, digest: str, packed: PackedWeights, model: str) -> None:
        self.directory = cache / f".partial-{digest}-{secrets.token_hex(8)}"
        self._digest = digest
        self._model = model
        self._packed = packed
        self._layout = packed.layout()
        self._header = self._layout.header()
        self.file_bytes = len(self._header) + self._layout.data_bytes

    def write(self, stop: threading.Event) -> bool:
        """Write all, the commit record last. False if it was stopped."""
        self.directory.mkdir(mode=PRIVATE_DIRECTORY)
        write_own(self.directory / WRITING, json.dumps({"weights": self._digest}).encode())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(open_own(self.directory / SINGLE_FILE, flags), "wb", buffering=0) as file:
            file.write(self._header)
            for name, array in self._packed.arrays():
                memory = as_bytes(array).data
                place = len(self._header) + self._layout.start(name)
                for start in range(0, len(memory), WRITE_BYTES):
                    if stop.is_set():
                        return False
                    _write_at(file.fileno(), memory[start : start + WRITE_BYTES], place + start)
        record = {
            "version": VERSION,
            "bytes": self.file_bytes,
            "weights": self._digest,
            "model": self._model,
        }
        write_own(self.directory / RECORD, json.dumps(record).encode())
        return True

    def clear(self) -> None:
        """Remove what was not renamed to its place."""
        with contextlib.suppress(OSError):
            PARTIALS.remove(self.directory)


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry as it is listed: the model that was named when it was packed, if that is known, the
    bytes of its files, and when it was used last."""

    directory: Path
    model: str
    nbytes: int
    used_ns: int


def kept_entries(directory: Path) -> list[Kept]:
    """The entries of a cache, what was used last first. What is not Ockham's is left out."""
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if ENTRIES.owns(path):
            with contextlib.suppress(OSError, ValueError):
                model = str(json.loads(read_own(path / RECORD)).get("model", ""))
                used_ns = (path / RECORD).lstat().st_mtime_ns
                found.append(Kept(path, model, ENTRIES.nbytes(path), used_ns))
    return sorted(found, key=lambda each: -each.used_ns)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
