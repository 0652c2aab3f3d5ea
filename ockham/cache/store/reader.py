"""Pages on their way from the disk, so that no step waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from threading import Condition, Thread

import numpy as np

from ockham.cache.store.disk import DiskStore
from ockham.cache.store.names import PageName
from ockham.cache.store.record import Bytes

STAGED_BYTES = 64 << 20
"""Pages that were read and not yet taken; the reader waits when there are more."""
BATCH_BYTES = 4 << 20
"""Read together, and then ready to be taken."""


class Read:
    """Pages that are being read, in their order. Made and used through a `Reader`."""

    def __init__(self, names: Sequence[PageName]) -> None:
        self.names = names
        self.ready: deque[tuple[int, Bytes]] = deque()
        """Layer groups and bytes of the next pages."""
        self.ended = False
        """Whether no more will become ready."""
        self.cancelled = False


class Reader:
    """A queue of reads and the thread that works through it, one after the other."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store
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

    def take(self, read: Read) -> tuple[int, Bytes] | None:
        """The next page, if it is ready."""
        with self._condition:
            if not read.ready:
                return None
            groups, page = read.ready.popleft()
            self._staged_bytes -= self._store.slot_bytes
            self._condition.notify_all()
            return groups, page

    def cancel(self, read: Read) -> None:
        with self._condition:
            read.cancelled = True
            self._staged_bytes -= len(read.ready) * self._store.slot_bytes
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
        size = max(1, BATCH_BYTES // self._store.slot_bytes)
        for start in range(0, len(read.names), size):
            names = read.names[start : start + size]
            with self._condition:
                self._condition.wait_for(
                    lambda: self._staged_bytes < STAGED_BYTES or read.cancelled or self._closed
                )
                if read.cancelled or self._closed:
                    return
            buffer = np.empty((len(names), self._store.slot_bytes), np.uint8)
            begin = time.perf_counter()
            groups = self._store.read(names, list(buffer))
            self._note(len(groups) * self._store.slot_bytes, time.perf_counter() - begin)
            with self._condition:
                if read.cancelled:
                    return
                read.ready.extend(zip(groups, buffer, strict=False))
                self._staged_bytes += len(groups) * self._store.slot_bytes
                self._condition.notify_all()
            if len(groups) < len(names):
                return

    def _note(self, nbytes: int, seconds: float) -> None:
        if not nbytes:
            return
        rate, before = nbytes / max(seconds, 1e-9), self.bytes_per_s
        # Of times, not of rates: what counts is how long the next bytes will take.
        self.bytes_per_s = rate if before is None else 2 / (1 / rate + 1 / before)
