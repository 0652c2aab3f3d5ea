"""Attention in NumPy: one sequence of the step after another.

Each layer gathers a sequence's keys and values once and computes its rows together, in blocks that
keep the matrix of scores bounded. Keys that a row does not visit get no weight; they are computed
all the same.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.visits import Visits
from ockham.kernels.ops import Attend
from ockham.kernels.reference.choosing import Chosen
from ockham.kernels.reference.dual_chunk import Turned, turned
from ockham.kernels.reference.formulas import softcap
from ockham.kernels.reference.planes import Side
from ockham.kernels.reference.run import ReferenceRun, twin
from ockham.kernels.reference.stored import Codec
from ockham.kernels.reference.views import View

SCORE_VALUES = 1 << 22
"""Scores held at a time (16 MiB), unless one row alone has more."""


@twin(Attend)
def compute(run: ReferenceRun, op: Attend) -> None:
    step, layer = run.step, op.layer
    by_head, summed = step.wants_scores.get(layer), step.wants_score_sums.get(layer)
    totalled = step.wants_score_totals.get(layer)
    if (asked := step.wants_queries.get(layer)) is not None:
        attends = np.ones(len(asked), np.bool_)
        if run.active is not None:
            attends = np.isin(asked, run.active)
        queries = run.q[asked].reshape(len(asked), -1)
        run.queries[layer] = np.where(attends[:, None], queries, np.float32(0))
    of_sets = None if totalled is None else totalled.rows
    wanted = {
        row for rows in (by_head, summed, of_sets) if rows is not None for row in rows.tolist()
    }
    sequences = run.views_of(op.group, op.window, op.causal)
    visited = _visited(run, op)
    run.a, scores = attend(
        op,
        run.planes.layer(op.state_layer),
        run.q,
        sequences,
        wanted,
        visited,
        turned(run.rope, run.q, step.positions),
    )
    if visited is not None and len(step.wants_recall):
        whole = np.ones(op.kv_heads, np.float32)  # of a row that is not active
        found = [visited.recall.get(row, whole) for row in step.wants_recall.tolist()]
        run.recall[layer] = np.array(found, np.float32)
    nothing = np.empty((op.kv_heads, 1, 0), np.float32)  # of a row that is not active
    if by_head is not None:
        run.scores[layer] = [scores.get(row, nothing).sum(axis=1) for row in by_head.tolist()]
    if summed is not None:
        run.score_sums[layer] = [
            scores.get(row, nothing).sum(axis=(0, 1)) for row in summed.tolist()
        ]
    if totalled is not None:
        lows = {
            row: int(low)
            for view in sequences
            for row, low in enumerate(view.low.tolist(), view.start)
        }
        run.score_totals[layer] = [
            _total([(lows.get(row, 0), scores.get(row, nothing)) for row in rows.tolist()])
            for rows in totalled
        ]


def _total(rows: list[tuple[int, Floats]]) -> Doubles:
    """The sum of rows' probabilities (kv_heads, repeat, keys) over query heads and rows, each value
    rounded to a multiple of 2^-32; of each row with the number of its first key."""
    keys = max(low + scores.shape[-1] for low, scores in rows)
    total = np.zeros((len(rows[0][1]), keys))
    for low, scores in rows:
        found = np.rint(scores.sum(axis=1).astype(np.float64) * 2.0**32) / 2.0**32
        total[:, low : low + scores.shape[-1]] += found
    return total


def attend(
    op: Attend,
    layer: list[Side],
    q: Floats,
    sequence_views: list[View],
    wanted: Set[int],
    visited: Visited | None = None,
    chunks: Turned | None = None,
) -> tuple[Floats, dict[int, Floats]]:
    """Attention of all rows of a step: a (R, H * E), and the wanted rows' probabilities: (kv_heads,
    heads / kv_heads, keys). All blocks of keys are visited, or those of `visited`. `chunks` are the
    queries turned for the keys of other chunks."""
    a = np.zeros((len(q), op.heads * op.head_dim), np.float32)
    scores: dict[int, Floats] = {}
    for view in sequence_views:
        gathered = [view.gather(side) for side in layer]
        keys, values = gathered[0], gathered[-1]
        block = max(1, SCORE_VALUES // (op.heads * max(1, len(keys))))
        for start in range(view.start, view.stop, block):
            stop = min(start + block, view.stop)
            probabilities = _attend_block(
                op, layer[0].codec, view, start, stop, keys, values, q, a, visited, chunks
            )
            for row in wanted & set(range(start, stop)) if wanted else ():
                scores[row] = probabilities(row)
    return a, scores


def _attend_block(
    op: Attend,
    codec: Codec,
    view: View,
    start: int,
    stop: int,
    keys: Floats,
    values: Floats,
    q: Floats,
    a: Floats,
    visited: Visited | None,
    chunks: Turned | None,
) -> _Probabilities:
    """Rows [start, stop) of one sequence; writes their part of `a`. `codec` is that of the keys."""
    rows = slice(start - view.start, stop - view.start)
    low, high = view.low[rows], view.high[rows]
    first, last = int(low.min()), int(high.max())
    if view.extra is None:  # only the cells that this block's rows see
        keys, values = (side[first - view.first : last - view.first] for side in (keys, values))
    else:
        first, last = view.first, view.last
    count, kv_heads, repeat = stop - start, op.kv_heads, op.heads // op.kv_heads

    def products(of: Floats) -> Floats:
        queries = of[start:stop].reshape(count, kv_heads, repeat, op.head_dim) * np.float32(
            op.scale
        )
        queries = codec.beside(queries)
        queries = queries.transpose(1, 0, 2, 3).reshape(kv_heads, count * repeat, op.head_dim)
        found: Floats = np.matmul(queries, keys.transpose(1, 2, 0))
        return found

    if chunks is None:
        scores = products(q)
    else:
        ways = chunks.ways(view, start, stop, first, last, len(keys))
        each = np.stack([products(of) for of in chunks.queries])
        by_way = each.reshape(len(each), kv_heads, count, repeat, len(keys))
        picked = np.take_along_axis(by_way, ways[None, None, :, None, :], axis=0)
        scores = picked.reshape(kv_heads, count * repeat, len(keys))
    softcap(scores, op.softcap)
    by_row = scores.reshape(kv_heads, count, repeat, len(keys))
    hidden = _hidden(view, rows, low, high, first, last, len(keys))
    if hidden is not None:
        np.copyto(by_row, -np.inf, where=hidden[None, :, None, :])
    if visited is not None:
        measured = [row - start for row in visited.measured if start <= row < stop]
        whole = _log_sum_exp(by_row[:, measured], op)
        unvisited = visited.unvisited(view, start, stop, first, last, len(keys))
        np.copyto(by_row, -np.inf, where=unvisited[:, :, None, :])
        if visited.chosen is not None:
            visited.chosen.hide(view, start, stop, first, last, by_row)
        share = np.exp(_log_sum_exp(by_row[:, measured], op) - whole).mean(axis=-1)
        for place, row in enumerate(measured):
            visited.recall[start + row] = share[:, place].astype(np.float32)
    peak = scores.max(axis=-1, keepdims=True)
    sinks = None
    if op.sinks is not None:
        sinks = np.tile(op.sinks.reshape(kv_heads, 1, repeat), (1, count, 1))
        sinks = sinks.reshape(kv_heads, count * repeat, 1)
        peak = np.maximum(peak, sinks)
    scores -= peak
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks - peak)
    out = np.matmul(scores, values.transpose(1, 0, 2)) / total
    out = out.reshape(kv_heads, count, repeat, op.head_dim).transpose(1, 0, 2, 3)
    a[start:stop] = out.reshape(count, op.heads * op.head_dim)
    return _Probabilities(view, start, first, last, by_row, total.reshape(by_row.shape[:3]))


def _log_sum_exp(scores: Floats, op: Attend) -> Doubles:
    """(kv_heads, rows, repeat), over the last axis, in which some score is finite, and sinks."""
    if not scores.size:
        return np.empty(scores.shape[:-1], np.float64)
    peak = scores.max(axis=-1, keepdims=True)
    sums = np.exp(scores - peak).sum(axis=-1, dtype=np.float64)
    found: Doubles = np.log(sums) + peak[..., 0]
    if op.sinks is not None and found.size:
        found = np.logaddexp(found, op.sinks.reshape(op.kv_heads, 1, -1))
    return found


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


@dataclass(frozen=True, slots=True)
class Visited:
    """What the rows of a step visit in one layer, the group's layer `index`. `seen` (R,) is how
    many keys each row sees where there is no window. Of the rows `measured`, `recall` takes the
    share of the attention of each key-value head that is on visited keys: (kv_heads,)."""

    visits: Visits | None
    index: int
    seen: Ints
    chosen: Chosen | None = None
    """What rows chose by themselves."""
    measured: Set[int] = frozenset()
    recall: dict[int, Floats] = field(default_factory=dict)

    def unvisited(
        self, view: View, start: int, stop: int, first: int, last: int, columns: int
    ) -> npt.NDArray[np.bool_]:
        """Which columns the rows [start, stop) of a view do not visit with each head: (kv_heads,
        rows, columns). The first columns are the cells [first, last), the others extra cells."""
        if self.visits is None:
            return np.zeros((1, stop - start, columns), np.bool_)
        heads = self.visits.lists.shape[2]
        found = np.zeros((heads, stop - start, columns), np.bool_)
        for row in range(start, stop):
            of_view, keys = row - view.start, int(self.seen[row])
            low, high = int(view.low[of_view]), int(view.high[of_view])
            visited = self.visits.mask(row, self.index, keys)
            found[:, row - start, low - first : high - first] = ~visited[:, low:high]
            if view.extra is not None:
                extra = view.extra[of_view]
                found[:, row - start, last - first + extra] = ~visited[:, keys - len(extra) :]
        return found


def _visited(run: ReferenceRun, op: Attend) -> Visited | None:
    """What the rows visit in the operation's layer; None for all that they see."""
    group = run.step.groups[op.group]
    chooses = group.choices is not None and op.window is None and op.causal
    if group.visits is None and not chooses:
        return None
    index = run.planes.groups[op.group].layers.index(op.state_layer)
    chosen: Chosen | None = None
    if group.choices is not None and chooses:
        books = run.planes.groups[op.group].books
        own = None if books is None else books[index]
        held = run.planes.held.setdefault((op.group, op.layer), {})
        chosen = Chosen(group.choices, index, op.layer, held, own)
        left_out = run.left_out.setdefault(op.group, np.zeros((3, run.step.rows), np.int64))
        views = run.views_of(op.group, op.window, op.causal)
        plane = run.planes.layer(op.state_layer)
        chosen.choose(op, plane, run.q, views, group.keys_seen, left_out)
    return Visited(
        group.visits,
        index,
        group.keys_seen,
        chosen,
        frozenset(run.step.wants_recall.tolist()),
    )


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
