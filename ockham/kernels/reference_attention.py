"""Attention of the reference backend: one sequence of the step after another.

What the rows of a sequence see is worked out once per step and group of layers (`Views`); each
layer then gathers the sequence's keys and values once and computes its rows together, in blocks
that keep the matrix of scores bounded.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.step import GroupRows, Step
from ockham.kernels.ops import Attend
from ockham.kernels.reference_math import softcap
from ockham.kernels.reference_planes import Stored, widen

SCORE_VALUES = 1 << 22
"""Scores held at a time (16 MiB), unless one row alone has more."""


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

    def gather(self, plane: Stored) -> Floats:
        """The cells [first, last) and then the extra cells: (cells, kv_heads, head_dim)."""
        taken = plane[self.pages] if isinstance(self.pages, slice) else plane.take(self.pages, 0)
        cells = taken.reshape(-1, *plane.shape[2:])[self.skip :][: self.last - self.first]
        if self.extra_slots is None:
            return widen(cells)
        page_tokens = plane.shape[1]
        extra = plane[self.extra_slots // page_tokens, self.extra_slots % page_tokens]
        return widen(np.concatenate([cells, extra]))


def views(step: Step, group: int, window: int | None) -> list[View]:
    """The views of all sequences of a step that have rows, for layers with this window."""
    rows = step.groups[group]
    tables = rows.tables
    low, extra_skip = _window_starts(rows, window)
    bounds = np.flatnonzero(np.diff(step.sequence, prepend=-1, append=-1))
    return [
        _view(
            rows,
            step.page_tokens,
            tables.pages[tables.starts[step.sequence[start]] :],
            start,
            stop,
            low,
            extra_skip,
        )
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
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


def _view(
    rows: GroupRows,
    page_tokens: int,
    table: Ints,
    start: int,
    stop: int,
    low: Ints,
    extra_skip: Ints | None,
) -> View:
    low, high = low[start:stop], rows.context[start:stop]
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


def attend(
    op: Attend, plane: Stored, q: Floats, sequence_views: list[View], wanted: Set[int]
) -> tuple[Floats, dict[int, Floats]]:
    """Attention of all rows of a step: a (R, H * E), and the wanted rows' probabilities: (kv_heads,
    heads / kv_heads, keys)."""
    a = np.empty((len(q), op.heads * op.head_dim), np.float32)
    scores: dict[int, Floats] = {}
    for view in sequence_views:
        keys, values = view.gather(plane[0]), view.gather(plane[1])
        block = max(1, SCORE_VALUES // (op.heads * max(1, len(keys))))
        for start in range(view.start, view.stop, block):
            stop = min(start + block, view.stop)
            probabilities = _attend_block(op, view, start, stop, keys, values, q, a)
            for row in wanted & set(range(start, stop)) if wanted else ():
                scores[row] = probabilities(row)
    return a, scores


def _attend_block(
    op: Attend,
    view: View,
    start: int,
    stop: int,
    keys: Floats,
    values: Floats,
    q: Floats,
    a: Floats,
) -> _Probabilities:
    """Rows [start, stop) of one sequence; writes their part of `a`."""
    rows = slice(start - view.start, stop - view.start)
    low, high = view.low[rows], view.high[rows]
    first, last = int(low.min()), int(high.max())
    if view.extra is None:  # only the cells that this block's rows see
        keys, values = (side[first - view.first : last - view.first] for side in (keys, values))
    else:
        first, last = view.first, view.last
    count, kv_heads, repeat = stop - start, op.kv_heads, op.heads // op.kv_heads
    queries = q[start:stop].reshape(count, kv_heads, repeat, op.head_dim) * np.float32(op.scale)
    queries = queries.transpose(1, 0, 2, 3).reshape(kv_heads, count * repeat, op.head_dim)
    scores = softcap(np.matmul(queries, keys.transpose(1, 2, 0)), op.softcap)
    by_row = scores.reshape(kv_heads, count, repeat, len(keys))
    hidden = _hidden(view, rows, low, high, first, last, len(keys))
    if hidden is not None:
        np.copyto(by_row, -np.inf, where=hidden[None, :, None, :])
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    out = np.matmul(scores, values.transpose(1, 0, 2)) / total
    out = out.reshape(kv_heads, count, repeat, op.head_dim).transpose(1, 0, 2, 3)
    a[start:stop] = out.reshape(count, op.heads * op.head_dim)
    return _Probabilities(view, start, first, last, by_row, total.reshape(by_row.shape[:3]))


def _hidden(
    view: View, rows: slice, low: Ints, high: Ints, first: int, last: int, columns: int
) -> npt.NDArray[np.bool_] | None:
    """Which columns each row does not see, or None where every row sees all."""
    if view.extra is None and low.max() == first and high.min() == last:
        return None
    cells = np.arange(first, last, dtype=np.int32)
    hidden = np.ones((len(low), columns), np.bool_)
    hidden[:, : last - first] = (cells < low[:, None]) | (cells >= high[:, None])
    if view.extra is not None:
        for row, seen in enumerate(view.extra[rows]):
            hidden[row, last - first + seen] = False
    return hidden


@dataclass(slots=True)
class _Probabilities:
    """The attention probabilities of a block of rows, not yet divided by their totals."""

    view: View
    start: int
    first: int
    last: int
    scores: Floats  # (kv_heads, rows, repeat, columns)
    totals: Floats  # (kv_heads, rows, repeat)

    def __call__(self, row: int) -> Floats:
        """One row's probabilities for the keys that it sees in order."""
        i, of_view = row - self.start, row - self.view.start
        low, high = int(self.view.low[of_view]), int(self.view.high[of_view])
        every: Floats = self.scores[:, i] / self.totals[:, i, :, None]
        seen = every[..., low - self.first : high - self.first]
        if self.view.extra is None:
            return seen
        extra = self.view.extra[of_view]
        return np.concatenate([seen, every[..., self.last - self.first + extra]], axis=-1)
