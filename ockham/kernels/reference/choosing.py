"""Rows that choose by their own query which blocks of keys they visit: what `core.choices` means,
in NumPy, from the keys themselves instead of from summaries that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.choices import Choice, Choices
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.ops import Attend
from ockham.kernels.reference.planes import Side
from ockham.kernels.reference.views import View

SUMMARY_KEYS = 16
"""Keys of one summary."""

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


ESTIMATES: dict[str, Estimate] = {"bounds": bounds, "codes": codes}
SUMMARY_BYTES: dict[str, Callable[[int], int]] = {
    "bounds": lambda width: 4 * width,
    "codes": lambda width: 4 * width + 64,
}
"""By chooser: bytes of the summary of 16 keys, of heads of so many elements, padded to 16."""


def _bf16(values: Floats) -> Floats:
    wide: Floats = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return wide


def block_scores(choice: Choice, queries: Floats, keys: Floats) -> Floats:
    """How well the queries (heads, head_dim) of one key-value head may score in each whole block of
    keys (blocks * 64, head_dim): (heads, blocks)."""
    groups = keys.reshape(-1, SUMMARY_KEYS, keys.shape[-1])
    of_groups = ESTIMATES[choice.chooser](queries, groups)
    found: Floats = of_groups.reshape(len(queries), -1, BLOCK_KEYS // SUMMARY_KEYS).max(axis=-1)
    return found


def budget(choice: Choice, keys: int) -> int:
    """Blocks that a row which sees so many keys may visit."""
    wanted = max(choice.tokens, int(np.ceil(choice.share * keys)))
    return max(-(-wanted // BLOCK_KEYS), choice.sinks + choice.local)


def visits_all(choice: Choice, keys: int) -> bool:
    """Whether a row that sees so many keys has nothing to choose."""
    own = (keys - 1) // BLOCK_KEYS
    return own == 0 or (budget(choice, keys) > own and np.isinf(choice.within))


def chosen_blocks(choice: Choice, queries: Floats, keys: Floats) -> Ints:
    """The blocks that a row visits with one key-value head, whose queries are (heads, head_dim),
    and of which it sees the keys (n, head_dim), more than it visits."""
    own = (len(keys) - 1) // BLOCK_KEYS
    count = budget(choice, len(keys))
    scores = block_scores(choice, queries, keys[: own * BLOCK_KEYS])
    deficits = scores.max(axis=1, keepdims=True) - scores
    weights = np.exp(-deficits)
    weights /= weights.sum(axis=1, keepdims=True)
    first = min(choice.sinks, own + 1)
    last = max(first, own + 1 - choice.local)
    others = weights.sum(axis=0)[first:last]
    order = np.argsort(-others, kind="stable")[: max(0, count - choice.sinks - choice.local)]
    order = order[deficits.min(axis=0)[first:last][order] <= choice.within]
    forced = np.r_[np.arange(first), np.arange(last, own + 1)]
    blocks: Ints = np.sort(np.r_[forced, first + order]).astype(np.int32)
    return blocks


@dataclass(slots=True)
class Chosen:
    """What the rows of a step choose in one layer, the group's layer `index`."""

    choices: Choices
    index: int
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
        repeat, width = op.heads // op.kv_heads, -(-op.head_dim // 16) * 16
        for view in views:
            keys = None
            for row in range(view.start, view.stop):
                seen = int(keys_seen[row])
                choice = self.choices.of(row, self.index, seen)
                own = (seen - 1) // BLOCK_KEYS
                if choice is None or visits_all(choice, seen):
                    continue
                if keys is None:
                    keys = view.gather(layer[0])
                columns = _columns(view, row)
                left_out[1, row] += op.kv_heads * own * 4 * SUMMARY_BYTES[choice.chooser](width)
                for head in range(op.kv_heads):
                    queries = q[row, head * repeat : (head + 1) * repeat] * np.float32(op.scale)
                    blocks = chosen_blocks(choice, queries, keys[columns, head])
                    self.blocks[row, head] = blocks
                    left_out[0, row] += (own + 1 - len(blocks)) * BLOCK_KEYS

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
