"""One prefix on its way back into the pool."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ockham.cache.store.names import PageName
from ockham.cache.store.reader import Read
from ockham.cache.store.section import Section
from ockham.core.arrays import Bytes, Ints

FROM_DISK, FROM_MEMORY = "store", "swap"
"""What the ledger calls them."""


class Nothing:
    """A fetch of nothing: what the pool has is all there is."""

    done = True
    brought: tuple[tuple[range, str], ...] = ()

    def __init__(self, reach: int = 0) -> None:
        self.reach = reach

    def cancel(self) -> None:
        return None


NOTHING = Nothing()


class Item(NamedTuple):
    """A page, or a checkpoint, on its way: what it is called, and where it is."""

    number: int
    """Of the page in its context."""
    section: Section
    names: Sequence[PageName]
    """Of its rows on disk."""
    source: tuple[int, Bytes] | int
    """Its groups and bytes in memory, or its groups on disk."""


class Placing:
    """A checkpoint that comes into the pool in parts."""

    def __init__(self, pages: Mapping[int, int]) -> None:
        self.pages = pages
        """Of each group, the page that is being filled."""
        self.done_bytes = 0


class PageFetch:
    """Pages of a context, and the checkpoints that make them of use. See
    `ockham.core.seams.Fetch`."""

    def __init__(
        self,
        tokens: Ints,
        salt: str,
        first: int,
        items: Sequence[Item],
        read: Read | None,
        groups: int,
        cancel: Callable[[PageFetch], None],
    ) -> None:
        self.tokens, self.salt = tokens, salt
        """The tokens that will be there when all of it has come."""
        self.first = first
        """Pages that the pool has already."""
        self.items = items
        self.read = read
        self.rows: deque[tuple[list[int], Bytes]] = deque()
        """What the disk gave and nobody has taken: the next rows, several at a time, and the groups
        of each."""
        self.keys = frozenset(name.key for item in items for name in item.names)
        self.taken = 0
        """Items that are in the pool."""
        self.pages: list[dict[int, int]] = [{} for _ in range(groups)]
        """Of each group, by their number in the context."""
        self.placing: Placing | None = None
        """The next item, if it is a checkpoint of which some is in the pool."""
        self.stopped = False
        """Whether no more will come."""
        self.done = False
        self.brought: tuple[tuple[range, str], ...] = ()
        self.reach = 0
        self.progress_s = time.monotonic()
        self._cancel = cancel

    def take_rows(self, most: int) -> tuple[list[int], Bytes]:
        """Up to so many of the next rows of `rows`, and the groups of each."""
        groups, rows = self.rows.popleft()
        if len(rows) > most:
            self.rows.appendleft((groups[most:], rows[most:]))
        return groups[:most], rows[:most]

    def settle(self, page_tokens: int, reach: int) -> None:
        """Say which cells came from where, and how far they reach. A checkpoint counts for the
        cells before it of which nothing else was lacking."""
        from_disk = {
            i.number: isinstance(i.source, int) for i in reversed(self.items[: self.taken])
        }
        last = max(from_disk, default=self.first - 1)
        places = [
            FROM_DISK if from_disk.get(number, from_disk[last]) else FROM_MEMORY
            for number in range(self.first, last + 1)
        ]
        at, brought = self.first * page_tokens, []
        for place, run in groupby(places):
            end = at + len(list(run)) * page_tokens
            brought.append((range(at, end), place))
            at = end
        self.brought, self.reach = tuple(brought), reach

    def held(self) -> list[Ints]:
        placing = {} if self.placing is None else self.placing.pages
        return [
            np.array([*pages.values(), *([placing[group]] if group in placing else [])], np.int32)
            for group, pages in enumerate(self.pages)
        ]

    def placed(self) -> None:
        """The checkpoint that comes in parts is whole."""
        assert self.placing is not None, "some of it is in the pool"
        for group, page in self.placing.pages.items():
            self.pages[group][self.items[self.taken].number] = page
        self.placing = None
        self.taken += 1

    def cancel(self) -> None:
        self._cancel(self)
