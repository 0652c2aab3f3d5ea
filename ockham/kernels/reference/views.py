"""What the rows of each sequence see, worked out once per step and group of layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.step import GroupRows, Step
from ockham.kernels.reference.planes import Side


@dataclass(slots=True)
class View:
    """What the rows [start, stop) of one sequence see in one group of layers.

    Row `start + i` sees the context cells [low[i], high[i]) and then the columns `extra[i]` of the
    sequence's extra cells. `pages` are those that hold the cells [first, last) that any row sees;
    pages outside of a window are not among them.
    """

    start: int
    stop: int
    low: Ints
    high: Ints
    first: int
    last: int
    pages: slice | Longs
    skip: int  # tokens of the first page that lie before `first`
    extra_slots: Longs | None
    extra: list[Longs] | None

    def gather(self, side: Side) -> Floats:
        """The cells [first, last) and then the extra cells: (cells, kv_heads, head_dim)."""
        plane, widen = side.stored, side.codec.widen
        taken = plane[self.pages] if isinstance(self.pages, slice) else plane.take(self.pages, 0)
        cells = taken.reshape(-1, *plane.shape[2:])[self.skip :][: self.last - self.first]
        if self.extra_slots is None:
            return widen(cells)
        page_tokens = plane.shape[1]
        extra = plane[self.extra_slots // page_tokens, self.extra_slots % page_tokens]
        return widen(np.concatenate([cells, extra]))

    def slot(self, column: int, page_tokens: int) -> int:
        """Where a gathered cell stands."""
        cells = self.last - self.first
        if column >= cells:
            assert self.extra_slots is not None, "there are no other cells"
            return int(self.extra_slots[column - cells])
        page, offset = divmod(self.skip + column, page_tokens)
        first = self.pages.start + page if isinstance(self.pages, slice) else self.pages[page]
        return int(first) * page_tokens + offset


def views(
    step: Step,
    group: int,
    window: int | None,
    active: Ints | None = None,
    causal: bool = True,
) -> list[View]:
    """The views of all sequences of a step that have active rows, for layers with this window: one
    for each run of such rows."""
    rows = step.groups[group]
    tables = rows.tables
    low, extra_skip = _window_starts(rows, window)
    high = rows.context if causal else _ends(step, rows, window)
    owner = step.sequence
    if active is not None:
        owner = np.full_like(step.sequence, -1)
        owner[active] = step.sequence[active]
    bounds = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
    return [
        _view(
            rows,
            step.page_tokens,
            tables.pages[tables.starts[step.sequence[start]] :],
            start,
            stop,
            low,
            high,
            extra_skip,
        )
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        if owner[start] >= 0
    ]


def _window_starts(rows: GroupRows, window: int | None) -> tuple[Ints, Ints | None]:
    """Per row, how many of its context cells and of its extra cells lie before the window."""
    if window is None:
        return np.zeros_like(rows.context), None
    seen = rows.context
    if rows.extra_starts is not None:
        seen = seen + np.diff(rows.extra_starts)
    unseen = np.maximum(seen - window, 0).astype(np.int32)
    low = np.minimum(unseen, rows.context)
    return low, unseen - low


def _ends(step: Step, rows: GroupRows, window: int | None) -> Ints:
    """Where what each row sees ends, if it sees what follows it."""
    assert rows.extra is None
    last = np.zeros(step.sequences, np.int32)
    np.maximum.at(last, step.sequence, rows.context)
    ends: Ints = last[step.sequence]
    return ends if window is None else np.minimum(ends, rows.context - 1 + np.int32(window))


def _view(
    rows: GroupRows,
    page_tokens: int,
    table: Ints,
    start: int,
    stop: int,
    low: Ints,
    high: Ints,
    extra_skip: Ints | None,
) -> View:
    low, high = low[start:stop], high[start:stop]
    first, last = int(low.min()), int(high.max())
    first_page, page_count = first // page_tokens, -(-last // page_tokens)
    pages = table[first_page:page_count].astype(np.int64)
    extra_slots, extra = _extras(rows, page_tokens, table, start, stop, extra_skip)
    return View(
        start,
        stop,
        low,
        high,
        first,
        last,
        pages=_as_slice(pages),
        skip=first - first_page * page_tokens,
        extra_slots=extra_slots,
        extra=extra,
    )


def _as_slice(pages: Longs) -> slice | Longs:
    """Neighbouring pages as a slice, which is read in place instead of copied."""
    if len(pages) and pages[-1] - pages[0] == len(pages) - 1 and (np.diff(pages) == 1).all():
        return slice(int(pages[0]), int(pages[-1]) + 1)
    return pages


def _extras(
    rows: GroupRows,
    page_tokens: int,
    table: Ints,
    start: int,
    stop: int,
    extra_skip: Ints | None,
) -> tuple[Longs | None, list[Longs] | None]:
    """The slots of a sequence's extra cells, and for each row the columns that it sees in order."""
    if rows.extra is None or rows.extra_starts is None:
        return None, None
    bounds = rows.extra_starts[start : stop + 1].tolist()
    if bounds[0] == bounds[-1]:
        return None, None
    skips = [0] * (stop - start) if extra_skip is None else extra_skip[start:stop].tolist()
    lists = [
        rows.extra[low + skip : high]
        for low, high, skip in zip(bounds[:-1], bounds[1:], skips, strict=True)
    ]
    cells = np.unique(np.concatenate(lists))
    pages = table[cells // page_tokens].astype(np.int64)
    slots = pages * page_tokens + cells % page_tokens
    return slots, [np.searchsorted(cells, one) for one in lists]
