"""Rows that choose by their own query which blocks of keys they visit: what `core.choices` means,
in NumPy, from the keys themselves instead of from summaries that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.choices import Choice, Choices
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.choosers import LOOKUPS, SUMMARY_KEYS, book_bytes, summary_bytes
from ockham.kernels.ops import Attend
from ockham.kernels.reference.choosing_together import HeadRule, together_blocks, whole_blocks
from ockham.kernels.reference.planes import Held, Side
from ockham.kernels.reference.views import View

Estimate = Callable[[Floats, Floats], Floats]
"""From queries (heads, head_dim), scaled, and keys (S, 16, head_dim): how well each query may score
at best with each 16 keys, (heads, S)."""


def bounds(queries: Floats, keys: Floats) -> Floats:
    """The sum over elements of the larger product of the query's with the largest and with the
    smallest of the keys' (Quest, arXiv:2406.10774), all rounded to bf16 first."""
    most, least = _bf16(keys.max(axis=1)), _bf16(keys.min(axis=1))
    found: Floats = _bf16(np.maximum(queries, 0)) @ most.T + _bf16(np.minimum(queries, 0)) @ least.T
    return found


NORMAL_STEP = np.float32(0.9957)
"""The step of evenly spaced values of 2 bits for a normal distribution of deviation 1."""


def codes(queries: Floats, keys: Floats) -> Floats:
    """The best score with keys of 2 bits an element and queries of 8, both turned by a Hadamard
    matrix (csrc/choosers/codes.cpp)."""
    turned = _turned(keys)
    step = NORMAL_STEP * np.sqrt((turned * turned).mean(axis=-1, keepdims=True))
    step = np.where(step > 0, step, np.float32(np.inf))
    near = np.clip(np.floor(turned / step) + 2, 0, 3) - np.float32(1.5)
    near = near * np.where(np.isfinite(step), step, 0)
    of_queries = _turned(queries)
    scale = np.abs(of_queries).max(axis=-1, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    rounded = np.rint(of_queries / scale) * scale
    scores = np.einsum("hd,skd->hsk", rounded, near)
    found: Floats = scores.max(axis=-1).astype(np.float32)
    return found


def _turned(rows: Floats) -> Floats:
    """Rows (..., head_dim), padded to a multiple of 16, times orthonormal Hadamard matrices of the
    largest power of two that divides their width."""
    width = -(-rows.shape[-1] // 16) * 16
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, width - rows.shape[-1])]
    padded = np.pad(rows, padding)
    size = width & -width
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    blocks = padded.reshape(*rows.shape[:-1], width // size, size)
    found: Floats = ((blocks @ matrix) / np.sqrt(np.float32(size))).reshape(padded.shape)
    return found


def means(queries: Floats, keys: Floats) -> Floats:
    """The score with the mean of the keys (csrc/choosers/means.cpp), all rounded to bf16."""
    found: Floats = _bf16(queries) @ _bf16(keys.mean(axis=1)).T
    return found


def lookups(queries: Floats, keys: Floats, book: Floats) -> Floats:
    """The logarithm of the sum over each block of keys of e^score, where a score is that with the
    key's centroid in the book (256, 2 * head_dim + 1): (heads, blocks)."""
    width = keys.shape[-1]
    centroids, directions, offsets = book[:, :width], book[:, width : 2 * width], book[:, -1]
    codes = (keys @ directions.T - offsets).argmax(axis=-1).reshape(-1, BLOCK_KEYS)
    scores = (_bf16(queries) @ _bf16(centroids).T)[:, codes]
    peak = scores.max(axis=(1, 2), keepdims=True)
    found: Floats = np.log(np.maximum(np.exp(scores - peak).sum(axis=-1), np.float32(1e-38)))
    return found


ESTIMATES: dict[str, Estimate] = {"bounds": bounds, "codes": codes, "means": means}


def _best(queries: Floats, keys: Floats) -> Floats:
    found: Floats = np.einsum("hd,skd->hsk", queries, keys).max(axis=-1).astype(np.float32)
    return found


@contextmanager
def best_scores() -> Iterator[None]:
    """For as long as it is open, every chooser has the best score of each 16 keys itself: what a
    better estimate could gain at most."""
    kept = dict(ESTIMATES)
    ESTIMATES.update(dict.fromkeys(kept, _best))
    try:
        yield
    finally:
        ESTIMATES.update(kept)


def _bf16(values: Floats) -> Floats:
    wide: Floats = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return wide


def block_scores(
    choice: Choice, queries: Floats, keys: Floats, book: Floats | None = None
) -> Floats:
    """How well the queries (heads, head_dim) of one key-value head may score in each whole block of
    keys (blocks * 64, head_dim): (heads, blocks). `book` is the head's codebook, if it has one."""
    if choice.chooser == LOOKUPS:
        if book is None:
            raise ValueError(f"the chooser {LOOKUPS} needs codebooks, and the layer has none.")
        return lookups(queries, keys, book)
    groups = keys.reshape(-1, SUMMARY_KEYS, keys.shape[-1])
    of_groups = ESTIMATES[choice.chooser](queries, groups)
    found: Floats = of_groups.reshape(len(queries), -1, BLOCK_KEYS // SUMMARY_KEYS).max(axis=-1)
    return found


def budget(choice: Choice, keys: int) -> int:
    """Blocks that a row which sees so many keys may visit, but for those that all visit."""
    among = keys if choice.among is None else min(keys, choice.among)
    wanted = max(choice.tokens, int(np.ceil(choice.share * among)))
    return max(-(-wanted // BLOCK_KEYS), choice.sinks + choice.local)


def visits_all(choice: Choice, keys: int) -> bool:
    """Whether a row that sees so many keys has nothing to choose."""
    own = (keys - 1) // BLOCK_KEYS
    last = own + 1
    if choice.among is not None:
        last = min(last, choice.among // BLOCK_KEYS + choice.local)
    return own == 0 or (budget(choice, keys) >= last and np.isinf(choice.within))


def chosen_blocks(
    choice: Choice, queries: Floats, keys: Floats, book: Floats | None = None
) -> Ints:
    """The blocks that a row visits with one key-value head, whose queries are (heads, head_dim),
    and of which it sees the keys (n, head_dim), more than it visits."""
    own = (len(keys) - 1) // BLOCK_KEYS
    count = budget(choice, len(keys))
    scores = block_scores(choice, queries, keys[: own * BLOCK_KEYS], book)
    deficits = scores.max(axis=1, keepdims=True) - scores
    weights = np.exp(-deficits)
    weights /= weights.sum(axis=1, keepdims=True)
    first = min(choice.sinks, own + 1)
    last = max(first, own + 1 - choice.local)
    if choice.among is not None:
        last = max(first, min(last, choice.among // BLOCK_KEYS))
    others = weights.sum(axis=0)[first:last]
    order = np.argsort(-others, kind="stable")[: max(0, count - choice.sinks - choice.local)]
    order = order[deficits.min(axis=0)[first:last][order] <= choice.within]
    forced = np.r_[np.arange(first), np.arange(last, own + 1)]
    blocks: Ints = np.sort(np.r_[forced, first + order]).astype(np.int32)
    return blocks


@dataclass(slots=True)
class Chosen:
    """What the rows of a step choose in one layer, the keys of which are those of the group's layer
    `index`. `held` is what rows of all steps have chosen there for others."""

    choices: Choices
    index: int
    layer: int
    held: Held
    books: Floats | None = None
    """The layer's codebooks (kv_heads, 256, 2 * head_dim + 1)."""
    blocks: dict[tuple[int, int], Ints] = field(default_factory=dict)
    """By row and key-value head; rows that visit all are not in it."""

    def choose(
        self,
        op: Attend,
        layer: list[Side],
        q: Floats,
        views: list[View],
        keys_seen: Ints,
        left_out: Longs,
    ) -> None:
        """Choose for all rows, with queries q (R, heads, head_dim), and add to `left_out` as
        `StepOutput` says."""
        repeat = op.heads // op.kv_heads
        for view in views:
            self._choose_together(op, layer[0], q, view, keys_seen, left_out)
            keys = None
            for row in range(view.start, view.stop):
                seen = int(keys_seen[row])
                choice = self.choices.of(row, self.index, seen)
                own = (seen - 1) // BLOCK_KEYS
                if choice is None or choice.together:
                    continue
                at = choice.chosen_at(seen - 1, choice.first or 0)
                if visits_all(choice, at + 1):
                    continue
                columns = _columns(view, row)
                slot = view.slot(int(columns[at]), layer[0].stored.shape[1])
                if at == seen - 1:
                    if keys is None:
                        keys = view.gather(layer[0])
                    summaries = op.kv_heads * own * BLOCK_KEYS // SUMMARY_KEYS
                    left_out[1, row] += summaries * summary_bytes(choice.chooser, op.head_dim)
                    left_out[1, row] += op.kv_heads * book_bytes(choice.chooser, op.head_dim)
                    by_head = []
                    for head in range(op.kv_heads):
                        queries = q[row, head * repeat : (head + 1) * repeat] * np.float32(op.scale)
                        book = None if self.books is None else self.books[head]
                        blocks = chosen_blocks(choice, queries, keys[columns, head], book)
                        by_head.append(blocks)
                    if choice.every > 1:
                        self.held[slot] = (seen, by_head)
                else:
                    saw, by_head = self.held.get(slot, (0, []))
                    if saw != at + 1:
                        raise ValueError(
                            f"row {row} goes on with what the row of key {at} chose, and that is "
                            f"not held in layer {self.layer}; it must be computed from that key on."
                        )
                for head, blocks in enumerate(by_head):
                    self.blocks[row, head] = blocks
                    left = (own + 1 - len(blocks)) * BLOCK_KEYS
                    left_out[0, row] += left
                    left_out[2, row] += seen - left

    def _choose_together(
        self, op: Attend, keys: Side, q: Floats, view: View, keys_seen: Ints, left_out: Longs
    ) -> None:
        """The same for the rows of whole blocks of one sequence that choose together."""
        repeat = op.heads // op.kv_heads
        found = list(whole_blocks(self.choices, self.index, view, keys_seen))
        if not found:
            return
        own = view.gather(keys)
        end = (found[-1][1] + 1) * BLOCK_KEYS
        row_bytes = keys.stored.shape[-1] * keys.stored.itemsize
        latest, _, choice = found[-1]
        readers = sum(
            HeadRule.of(self.choices, latest, choice, self.index, head).reads(end // BLOCK_KEYS)
            for head in range(op.kv_heads)
        )
        nbytes, rows = end * readers * row_bytes, len(found) * BLOCK_KEYS
        visited = np.zeros((op.kv_heads, end // BLOCK_KEYS), np.bool_)
        left_out[1, found[0][0]] += nbytes % rows
        for first, number, choice in found:
            block, seen = slice(first, first + BLOCK_KEYS), (number + 1) * BLOCK_KEYS
            left_out[1, block] += nbytes // rows
            for head in range(op.kv_heads):
                queries = q[block, head * repeat : (head + 1) * repeat] * np.float32(op.scale)
                rule = HeadRule.of(self.choices, first, choice, self.index, head)
                blocks = together_blocks(rule, queries, own[:seen, head])
                if rule.reads(number + 1):
                    left_out[0, block] -= seen // (2 * rule.rows_per_product)
                left_out[0, block] += seen - len(blocks) * BLOCK_KEYS
                visited[head, blocks] = True
                for row in range(first, first + BLOCK_KEYS):
                    self.blocks[row, head] = blocks
        for row in range(view.start, view.stop):
            if (row, 0) not in self.blocks:
                visited[:, : (min(end, int(keys_seen[row])) - 1) // BLOCK_KEYS + 1] = True
        left_out[2, found[0][0]] += int(visited.sum()) * BLOCK_KEYS

    def hide(
        self, view: View, start: int, stop: int, first: int, last: int, scores: Floats
    ) -> None:
        """Take what the rows [start, stop) of a view did not choose out of their scores (kv_heads,
        rows, heads / kv_heads, columns), whose first columns are the cells [first, last)."""
        for row in range(start, stop):
            for head in range(len(scores)):
                blocks = self.blocks.get((row, head))
                if blocks is None:
                    continue
                columns = _columns(view, row)
                unseen: npt.NDArray[np.bool_] = ~np.isin(
                    np.arange(len(columns)) // BLOCK_KEYS, blocks
                )
                # The view's columns are its cells from `view.first` on, then its extra cells.
                cells = view.last - view.first
                within = np.where(
                    columns < cells,
                    columns + view.first - first,
                    columns - cells + last - first,
                )
                scores[head, row - start][:, within[unseen]] = -np.inf


def _columns(view: View, row: int) -> Longs:
    """Which columns of a view's gathered cells a row sees, in order."""
    i = row - view.start
    seen: Longs = np.arange(int(view.low[i]), int(view.high[i])) - view.first
    if view.extra is None:
        return seen
    return np.concatenate([seen, view.last - view.first + view.extra[i]])
