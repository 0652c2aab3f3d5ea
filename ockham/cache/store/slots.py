"""A file of slots of one size, read and written where they stand.

Explicit `preadv` and `pwritev`, never a mapping: a full disk or a file that somebody cut off is an
error to be handled, not a signal that kills the process. Space is reserved before it is written to.
A file is its store's alone: no link is followed, and one that has a second name (a backup by hard
links) keeps its content under that name, and is begun anew under this.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ockham.core.arrays import Bytes
from ockham.core.owned_files import open_own

_MOST_VECTORS = 512
"""Rows of one system call; Linux takes 1,024."""


class SlotFile:
    """Slot i is bytes `[i * slot_bytes, (i + 1) * slot_bytes)`. Every method may raise OSError."""

    def __init__(self, path: Path, slot_bytes: int) -> None:
        self.path, self.slot_bytes = path, slot_bytes
        self._descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        if os.fstat(self._descriptor).st_nlink > 1:
            os.close(self._descriptor)
            os.unlink(path)
            self._descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def hold(self) -> None:
        """Lock the file until it is closed. Raises BlockingIOError if another holds it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def slots(self) -> int:
        """Whole slots that the file has room for."""
        return os.fstat(self._descriptor).st_size // self.slot_bytes

    def reserve(self, slots: int) -> None:
        """Make room for so many slots in all. If the disk is full, nothing has changed."""
        have = self.slots * self.slot_bytes
        try:
            os.posix_fallocate(self._descriptor, have, slots * self.slot_bytes - have)
        except OSError:
            os.ftruncate(self._descriptor, have)
            raise

    def shrink(self, slots: int) -> None:
        os.ftruncate(self._descriptor, slots * self.slot_bytes)

    def write(self, slots: Sequence[int], rows: Sequence[Bytes]) -> None:
        """Write row i to slot `slots[i]`."""
        for start, stop in _runs(slots):
            data = [row.data for row in rows[start:stop]]
            offset = slots[start] * self.slot_bytes
            while data:
                written = os.pwritev(self._descriptor, data, offset)
                offset += written
                data = _after(data, written)

    def read(self, slots: Sequence[int], rows: Sequence[Bytes]) -> int:
        """Fill row i from slot `slots[i]`; how many were filled before the file ended."""
        done = 0
        for start, stop in _runs(slots):
            data = [row.data for row in rows[start:stop]]
            offset = slots[start] * self.slot_bytes
            while data:
                got = os.preadv(self._descriptor, data, offset)
                if not got:
                    return done + (stop - start - len(data))
                offset += got
                data = _after(data, got)
            done = stop
        return done

    def will_read(self, slots: Sequence[int]) -> None:
        """Ask the system to begin reading."""
        for start, stop in _runs(slots):
            os.posix_fadvise(
                self._descriptor,
                slots[start] * self.slot_bytes,
                (stop - start) * self.slot_bytes,
                os.POSIX_FADV_WILLNEED,
            )

    def sync(self) -> None:
        """Return when what was written stands on the disk."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where slots that follow each other in the file begin and end."""
    start = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1 or i - start == _MOST_VECTORS:
            yield start, i
            start = i


def _after(data: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `data` when its first `done` bytes are dealt with."""
    for i, each in enumerate(data):
        if done < len(each):
            return [each[done:], *data[i + 1 :]]
        done -= len(each)
    return []
