"""One prefix on its way back into the pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from ockham.cache.store.names import PageName
from ockham.cache.store.reader import Read
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


class PageFetch:
    """Pages `first`, `first + 1`, ... of a context. See `ockham.core.seams.Fetch`."""

    def __init__(
        self,
        tokens: Ints,
        salt: str,
        first: int,
        names: Sequence[PageName],
        sources: Sequence[tuple[int, Bytes] | int],
        read: Read | None,
        groups: int,
        cancel: Callable[[PageFetch], None],
    ) -> None:
        self.tokens, self.salt = tokens, salt
        self.first = first
        self.names = names
        self.sources = sources
        """Of each page, its groups and bytes in memory, or its groups on disk."""
        self.read = read
        self.keys = frozenset(name.key for name in names)
        self.taken = 0
        """Pages that are in the pool."""
        self.pages: list[list[int]] = [[] for _ in range(groups)]
        """Of each group, these pages; -1 for none."""
        self.stopped = False
        """Whether no more will come."""
        self.done = False
        self.brought: tuple[tuple[range, str], ...] = ()
        self.reach = 0
        self.progress_s = time.monotonic()
        self._cancel = cancel

    def settle(self, page_tokens: int, reach: int) -> None:
        """Say which cells came from where, and how far they reach."""
        places = [
            FROM_DISK if isinstance(source, int) else FROM_MEMORY
            for source in self.sources[: self.taken]
        ]
        at, brought = self.first * page_tokens, []
        for place, run in groupby(places):
            end = at + len(list(run)) * page_tokens
            brought.append((range(at, end), place))
            at = end
        self.brought, self.reach = tuple(brought), reach

    def held(self) -> list[Ints]:
        return [np.array([p for p in pages if p >= 0], np.int32) for pages in self.pages]

    def cancel(self) -> None:
        self._cancel(self)
