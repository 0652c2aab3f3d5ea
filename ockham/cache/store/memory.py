"""Pages of state in memory beside the pool: what the pool let go of."""

from __future__ import annotations

from collections import OrderedDict

from ockham.cache.store.names import PageName
from ockham.core.arrays import Bytes


class MemoryTier:
    """Pages and checkpoints that take at most `most_bytes`. What was put or used longest ago goes
    first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.nbytes = most_bytes, 0
        self._pages: OrderedDict[bytes, tuple[PageName, int, Bytes]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._pages)

    def put(self, name: PageName, groups: int, page: Bytes) -> None:
        """Keep a page. `groups` has a bit for each layer group that is there."""
        self.drop(name)
        if page.nbytes > self.most_bytes:
            return
        while self.nbytes + page.nbytes > self.most_bytes:
            _, (_, _, gone) = self._pages.popitem(last=False)
            self.nbytes -= gone.nbytes
            self.evicted += 1
        self._pages[name.key] = name, groups, page
        self.nbytes += page.nbytes

    def get(self, name: PageName) -> tuple[int, Bytes] | None:
        """The groups and the bytes of a page."""
        found = self._pages.get(name.key)
        if found is None or found[0] != name:
            return None
        self._pages.move_to_end(name.key)
        return found[1], found[2]

    def drop(self, name: PageName) -> None:
        found = self._pages.pop(name.key, None)
        if found is not None:
            self.nbytes -= found[2].nbytes

    def clear(self) -> None:
        self._pages.clear()
        self.nbytes = 0
