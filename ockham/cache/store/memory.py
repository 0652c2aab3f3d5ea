"""Pages of state in memory beside the pool: what the pool let go of."""

from __future__ import annotations

from collections import OrderedDict

from ockham.cache.store.names import PageName
from ockham.core.arrays import Bytes


class MemoryTier:
    """Pages of `page_bytes` each that take at most `most_bytes`. What was put or used longest
    ago goes first."""

    def __init__(self, most_bytes: int, page_bytes: int) -> None:
        self.most_pages, self.page_bytes = most_bytes // page_bytes, page_bytes
        self._pages: OrderedDict[bytes, tuple[PageName, int, Bytes]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def nbytes(self) -> int:
        return len(self._pages) * self.page_bytes

    def put(self, name: PageName, groups: int, page: Bytes) -> None:
        """Keep a page. `groups` has a bit for each layer group that is there."""
        if not self.most_pages:
            return
        self._pages.pop(name.key, None)
        while len(self._pages) >= self.most_pages:
            self._pages.popitem(last=False)
            self.evicted += 1
        self._pages[name.key] = name, groups, page

    def get(self, name: PageName) -> tuple[int, Bytes] | None:
        """The groups and the bytes of a page."""
        found = self._pages.get(name.key)
        if found is None or found[0] != name:
            return None
        self._pages.move_to_end(name.key)
        return found[1], found[2]

    def drop(self, name: PageName) -> None:
        self._pages.pop(name.key, None)

    def clear(self) -> None:
        self._pages.clear()
