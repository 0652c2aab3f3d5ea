"""Copies of pages on their way to the disk, so that no step waits for it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Thread, get_native_id

from ockham.cache.store.disk import DiskStore
from ockham.cache.store.names import PageName
from ockham.core.arrays import Bytes

BATCH_BYTES = 16 << 20
"""Copies that are brought to the disk together."""

MOST_OFFERS = 256
"""That may wait; what comes then and is only to be counted as used is not."""
NICENESS = 10
"""Of the thread: what it does can wait for the steps."""


@dataclass(slots=True)
class _Offer:
    names: Sequence[PageName]
    groups: Sequence[int]
    rows: Sequence[Bytes]
    context: Sequence[bytes]


class Writer:
    """A queue of bounded bytes and the thread that empties it into a store."""

    def __init__(self, store: DiskStore, queue_bytes: int) -> None:
        """`queue_bytes`: copies that may wait. What does not fit is not written."""
        self._store, self._queue_bytes = store, queue_bytes
        self._queue: deque[_Offer] = deque()
        self._queued: set[bytes] = set()
        self._condition = Condition()
        self._closed = False
        self.skipped = 0
        """Pages that were not written, because the queue was full or the store had no room."""
        self._thread = Thread(target=self._run, name="ockham store writer", daemon=True)
        self._thread.start()

    def has(self, key: bytes) -> bool:
        """Whether a page is on its way."""
        return key in self._queued

    @property
    def room(self) -> int:
        """Pages that may be offered now."""
        if not self._store.writable:
            return 0
        return max(0, self._queue_bytes // self._store.slot_bytes - len(self._queued))

    def offer(
        self,
        names: Sequence[PageName],
        groups: Sequence[int],
        rows: Sequence[Bytes],
        context: Sequence[bytes],
    ) -> None:
        """Write pages, of which there are at most `room`; none of them may be on its way already.

        `rows` are the writer's from now on; `context` the keys of the pages of one context up to
        the last of these."""
        with self._condition:
            self._queue.append(_Offer(names, groups, rows, context))
            self._queued.update(name.key for name in names)
            self._condition.notify_all()

    def touch(self, context: Sequence[bytes]) -> None:
        """Count pages of one context that are there as used, before long."""
        with self._condition:
            if len(self._queue) < MOST_OFFERS:
                self._queue.append(_Offer((), (), (), context))
                self._condition.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way; False if that took too long."""
        with self._condition:
            return self._condition.wait_for(lambda: not (self._queued or self._queue), timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what is on its way, as far as the time allows, and end."""
        self.flush(timeout_s)
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # by thread only on Linux
            os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                batch = self._take()
            names = [name for offer in batch for name in offer.names]
            kept = self._store.write(
                names,
                [held for offer in batch for held in offer.groups],
                [row for offer in batch for row in offer.rows],
            )
            for offer in batch:
                self._store.touch(offer.context)
            with self._condition:
                self.skipped += len(names) - kept
                self._queued.difference_update(name.key for name in names)
                self._condition.notify_all()

    def _take(self) -> list[_Offer]:
        batch, pages = [self._queue.popleft()], BATCH_BYTES // self._store.slot_bytes
        pages -= len(batch[0].names)
        while self._queue and len(self._queue[0].names) <= pages:
            batch.append(self._queue.popleft())
            pages -= len(batch[-1].names)
        return batch
