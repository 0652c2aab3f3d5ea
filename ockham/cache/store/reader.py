"""Pages on their way from the disk, so that no step waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from threading import Condition, Thread

import numpy as np

from ockham.cache.store.disk import DiskStore
from ockham.cache.store.names import PageName
from ockham.cache.store.record import Record
from ockham.core.arrays import Bytes

STAGED_BYTES = 64 << 20
"""Pages that were read and not yet taken; the reader waits when there are more."""
BATCH_BYTES = 2 << 20
"""Read together, and then ready to be taken."""

LATER_S = 0.05
"""What was read is noted as used so much later, if nothing else is to be read."""


class Read:
    """Pages that are being read, in their order. Made and used through a `Reader`."""

    def __init__(self, names: Sequence[PageName]) -> None:
        self.names = names
        self.ready: deque[tuple[list[int], Bytes]] = deque()
        """The next pages, several at a time: their layer groups and their bytes, a row for each."""
        self.ended = False
        """Whether no more will become ready."""
        self.cancelled = False


class Reader:
    """A queue of reads and the thread that works through it, one after the other."""

    def __init__(self, store: DiskStore, idle: Iterable[None]) -> None:
        """`idle` is work that the thread does, a bit at a time, until the first read."""
        self._store, self._idle = store, idle
        self._queue: deque[Read] = deque()
        self._condition = Condition()
        self._staged_bytes = 0
        self._closed = False
        self.bytes_per_s: float | None = None
        """As measured: a mean that follows the latest reads; None before the first."""
        self._thread = Thread(target=self._run, name="ockham store reader", daemon=True)
        self._thread.start()

    def start(self, names: Sequence[PageName]) -> Read:
        read = Read(names)
        with self._condition:
            self._queue.append(read)
            self._condition.notify_all()
        return read

    def take(self, read: Read) -> tuple[list[int], Bytes] | None:
        """The next pages, if any are ready."""
        with self._condition:
            if not read.ready:
                return None
            groups, rows = read.ready.popleft()
            self._staged_bytes -= rows.nbytes
            self._condition.notify_all()
            return groups, rows

    def cancel(self, read: Read) -> None:
        with self._condition:
            read.cancelled = True
            self._staged_bytes -= sum(rows.nbytes for _, rows in read.ready)
            read.ready.clear()
            self._condition.notify_all()

    def wait(self, reads: Sequence[Read], timeout_s: float) -> None:
        """Sleep until one of these has news."""
        with self._condition:
            self._condition.wait_for(lambda: any(r.ready or r.ended for r in reads), timeout_s)

    def close(self, timeout_s: float) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        for _ in self._idle:
            if self._queue or self._closed:
                break
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                read = self._queue.popleft()
            self._work(read)
            with self._condition:
                read.ended = True
                self._condition.notify_all()

    def _work(self, read: Read) -> None:
        found: list[Record] = []
        size = max(1, BATCH_BYTES // self._store.slot_bytes)
        ahead = size * max(1, STAGED_BYTES // BATCH_BYTES)
        for start in range(0, len(read.names), size):
            names = read.names[start : start + size]
            if start % ahead == 0:
                self._store.will_read(read.names[start : start + 2 * ahead])
            with self._condition:
                self._condition.wait_for(
                    lambda: self._staged_bytes < STAGED_BYTES or read.cancelled or self._closed
                )
                if read.cancelled or self._closed:
                    break
            buffer = np.empty((len(names), self._store.slot_bytes), np.uint8)
            begin = time.perf_counter()
            records = self._store.read(names, list(buffer))
            self._note(len(records) * self._store.slot_bytes, time.perf_counter() - begin)
            found += records
            with self._condition:
                if read.cancelled:
                    break
                if records:
                    rows = buffer[: len(records)]
                    read.ready.append(([record.groups for record in records], rows))
                    self._staged_bytes += rows.nbytes
                read.ended = start + size >= len(read.names) or len(records) < len(names)
                self._condition.notify_all()
            if read.ended:
                break
        with self._condition:  # the engine is about to compute what was waiting for this
            self._condition.wait_for(lambda: self._queue or self._closed, LATER_S)
        self._store.note_use(found)

    def _note(self, nbytes: int, seconds: float) -> None:
        if not nbytes:
            return
        rate, before = nbytes / max(seconds, 1e-9), self.bytes_per_s
        # Of times, not of rates: what counts is how long the next bytes will take.
        self.bytes_per_s = rate if before is None else 2 / (1 / rate + 1 / before)
