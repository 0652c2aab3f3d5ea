"""Queries of dual chunk attention (`kernels.ops.DualChunk`) in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Floats, Ints, Longs
from ockham.kernels.ops import Rope
from ockham.kernels.reference.formulas import rotate, rotation
from ockham.kernels.reference.views import View


@dataclass(frozen=True, slots=True)
class Turned:
    """The queries of a step (R, H, E), scaled: for keys of their own chunk, of the chunk before,
    and of the chunks before that. `own` (R,) is the chunk that each row is in."""

    chunk: int
    queries: tuple[Floats, Floats, Floats]
    own: Ints

    def ways(self, view: View, start: int, stop: int, first: int, last: int, columns: int) -> Longs:
        """Which of `queries` meets each column with the rows [start, stop) of a view: (rows,
        columns). The first columns are the cells [first, last), the others extra cells."""
        positions = np.zeros((stop - start, columns), np.int64)
        positions[:, : last - first] = np.arange(first, last)
        if view.extra is not None:
            for row in range(start, stop):
                extra = view.extra[row - view.start]
                context = int(view.high[row - view.start])
                positions[row - start, last - first + extra] = context + np.arange(len(extra))
        found: Longs = np.clip(self.own[start:stop, None] - positions // self.chunk, 0, 2)
        return found


def turned(rope: Rope | None, q: Floats, positions: Ints) -> Turned | None:
    """Queries q (R, H, E), rotated by `rope` at their positions (R,), in all ways; None where the
    rope has no chunks."""
    if rope is None or rope.dual_chunk is None:
        return None
    chunk, reach = rope.dual_chunk.chunk, rope.dual_chunk.reach
    own = positions.astype(np.int64) % chunk
    scaled = q.copy()
    if rope.dual_chunk.original:
        lengths = (positions.astype(np.float64) + 1) / rope.dual_chunk.original
        roots = 0.1 * np.log(np.maximum(lengths, 1.0)) + 1.0
        scaled *= (roots**2).astype(np.float32)[:, None, None]
    queries = [scaled]
    for far in (own + chunk, np.full_like(own, 2 * chunk - 1)):
        by = (np.minimum(far, reach) - own).astype(np.int32)
        one = scaled.copy()
        rotate(one, *rotation(Rope(rope.inverse_frequencies), by))
        queries.append(one)
    before, others = queries[1:]
    return Turned(chunk, (scaled, before, others), positions // np.int32(chunk))
