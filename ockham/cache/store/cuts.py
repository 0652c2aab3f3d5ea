"""Checkpoints on their way out of the pool, in parts, so that no step waits for a whole one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from ockham.cache.store.names import PageName
from ockham.cache.store.section import Section
from ockham.cache.store.writer import Writer
from ockham.core.arrays import Bytes, Ints
from ockham.core.seams import PagePool


class _Cut:
    """The checkpoint that stands in one page of each group in `pages`; `present` has a bit for each
    of them. A part is a row of the disk."""

    def __init__(
        self, parts: Sequence[PageName], present: int, pages: Mapping[int, int], slot_bytes: int
    ) -> None:
        self.parts, self.present, self.pages = parts, present, pages
        self.rows: Bytes = np.zeros((len(parts), slot_bytes), np.uint8)
        self.done = 0
        """Parts that are copied."""

    def held(self, groups: int) -> list[Ints]:
        """Its pages of each group."""
        return [
            np.array([self.pages[group]] if group in self.pages else [], np.int32)
            for group in range(groups)
        ]


class Cuts:
    """Checkpoints of `section`, cut into parts of `payload_bytes`, of which each stands in a slot
    of the disk. Their pages are held until all of them is copied; then the writer has them."""

    def __init__(
        self,
        pool: PagePool,
        section: Section,
        writer: Writer,
        payload_bytes: int,
        slot_bytes: int,
    ) -> None:
        self._pool, self._section, self._writer = pool, section, writer
        self._payload_bytes, self._slot_bytes = payload_bytes, slot_bytes
        self._groups = len(pool.windows)
        self._queue: deque[_Cut] = deque()

    @property
    def parts(self) -> int:
        """How many parts the writer will be offered."""
        return sum(len(cut.parts) for cut in self._queue)

    def has(self, key: bytes) -> bool:
        """Whether the checkpoint whose first part has this key is on its way."""
        return any(cut.parts[0].key == key for cut in self._queue)

    def begin(self, parts: Sequence[PageName], present: int, pages: Mapping[int, int]) -> None:
        """Send a checkpoint on its way."""
        cut = _Cut(parts, present, pages, self._slot_bytes)
        self._pool.hold(cut.held(self._groups))
        self._queue.append(cut)

    def go_on(self, most: int | None) -> int:
        """Copy `most` bytes, or less than a part more; None: all. How many it was."""
        took, payload = 0, self._payload_bytes
        while self._queue and (most is None or took < most):
            cut = self._queue[0]
            start = cut.done * payload
            data = cut.rows[cut.done, : min(payload, self._section.row_bytes - start)]
            self._section.part_out(cut.pages, start, data)
            cut.done += 1
            took += len(data)
            if cut.done == len(cut.parts):
                self._queue.popleft()
                self._hand_over(cut)
        return took

    def free(self, pages: Sequence[Ints]) -> None:
        """The tree gives up these pages of each group: copy what of them is on its way."""
        if not self._queue:
            return
        gone = [set(each.tolist()) for each in pages]
        while any(page in gone[group] for cut in self._queue for group, page in cut.pages.items()):
            self.go_on(self._section.row_bytes)

    def held(self) -> list[list[Ints]]:
        """The pages of each group, of each checkpoint."""
        return [cut.held(self._groups) for cut in self._queue]

    def _hand_over(self, cut: _Cut) -> None:
        """A checkpoint that is whole goes to the writer, if that has room by now."""
        self._pool.drop(cut.held(self._groups))
        if len(cut.parts) > self._writer.room:
            self._writer.skipped += len(cut.parts)
            return
        keys = [part.key for part in cut.parts]
        self._writer.offer(cut.parts, [cut.present] * len(cut.parts), list(cut.rows), keys)
