"""What stands together in a store: one row holds the pages of several layer groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np

from ockham.core.arrays import Bytes, Ints, Longs
from ockham.kernels.base import Planes


class Section:
    """The pages of `groups`, one after the other in a row; `page_bytes` are those of every group
    of the model. The pool's planes are copied here and back."""

    def __init__(self, planes: Planes, groups: Sequence[int], page_bytes: Sequence[int]) -> None:
        self._planes, self.groups = planes, tuple(groups)
        self._page_bytes = page_bytes
        self.starts = dict(
            zip(groups, accumulate((page_bytes[g] for g in groups), initial=0), strict=False)
        )
        """Where each group's page begins in a row."""
        self.row_bytes = sum(page_bytes[group] for group in groups)
        self.every = sum(1 << group for group in groups)
        """A bit for each group."""

    def present(self, tables: Sequence[Ints], pages: int) -> Longs:
        """Of each of the first pages of a context, a bit for each group that holds it."""
        found = np.zeros(pages, np.int64)
        for group in self.groups:
            found |= (tables[group][:pages] >= 0).astype(np.int64) << group
        return found

    def copy_out(self, group: int, pages: Ints, rows: Bytes) -> None:
        """Copy a group's pages to its place in the rows, but for those that are -1."""
        at = self.starts[group]
        if (pages >= 0).all():
            self._planes.read_pages(group, pages.astype(np.int64), rows, at)
            return
        for i in np.flatnonzero(pages >= 0).tolist():
            self._planes.read_pages(group, pages[i : i + 1].astype(np.int64), rows[i : i + 1], at)

    def copy_in(self, group: int, pages: Ints, rows: Bytes) -> None:
        """Copy a group's part of the rows to its pages."""
        if len(pages):
            self._planes.write_pages(group, pages.astype(np.int64), rows, self.starts[group])

    def part_out(self, pages: Mapping[int, int], start: int, data: Bytes) -> None:
        """Fill `data` with what stands from byte `start` on in the row of one page of each group
        in `pages`; what others would have there stays."""
        for group, page, at, own in self._parts(pages, start, data):
            self._planes.read_part(group, page, at, own)

    def part_in(self, pages: Mapping[int, int], start: int, data: Bytes) -> None:
        """Put back what `part_out` gave."""
        for group, page, at, own in self._parts(pages, start, data):
            self._planes.write_part(group, page, at, own)

    def _parts(
        self, pages: Mapping[int, int], start: int, data: Bytes
    ) -> Iterator[tuple[int, int, int, Bytes]]:
        """Group, page, the first byte of the page, and the part of `data` that is of it."""
        for group, page in pages.items():
            begin = self.starts[group]
            first = max(start, begin)
            last = min(start + len(data), begin + self._page_bytes[group])
            if first < last:
                yield group, page, first - begin, data[first - start : last - start]
