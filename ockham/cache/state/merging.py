"""Cells that go on in others when they are dropped: what is read of a group, and what is written.

The arithmetic is on what the stored bits mean, and the result is stored as any row is. Rows in
which nothing goes on keep their bits. Keys that are held reflected are added up so: the reflection
of a mean is the mean of the reflections. Of a latent plane, whose rows are keys and values, the
rows are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ockham.cache.state.view import GroupView
from ockham.core.arrays import Array, Doubles, Floats, Ints, Longs
from ockham.core.errors import OckhamError
from ockham.core.seams import Merges
from ockham.kernels.layout import GroupLayout
from ockham.kernels.reference.planes import sides


@dataclass(frozen=True, slots=True)
class Change:
    """New rows of one layer: of heads `heads` (n,) in the changed cells `cells` (n,), by their
    index among those."""

    layer: int
    heads: Ints
    cells: Longs
    keys: Floats | None
    values: Floats


@dataclass(frozen=True, slots=True)
class Merged:
    """What cells that stay hold when others have gone on in them: `changed` are their numbers among
    those that stay, ascending."""

    changed: Longs
    changes: list[Change]

    @classmethod
    def of(
        cls, read: Callable[[Longs], Array], layout: GroupLayout, cells: Ints, merges: Merges
    ) -> Merged:
        """What `merges` makes of the cells held, of which `cells` stay. `read` gives the stored
        bits of cells held."""
        wide = np.broadcast_to(cells, (*_heads(layout), cells.shape[-1]))
        targets = wide[merges.layers, merges.heads, merges.into]
        needed = np.unique(np.concatenate((targets, merges.dropped)).astype(np.int64))
        stored, planes = read(needed), layout.spec.planes
        changed = np.unique(merges.into).astype(np.int64)
        changes = []
        for layer in np.unique(merges.layers).tolist():
            own = np.flatnonzero(merges.layers == layer)
            heads, into = merges.heads[own], merges.into[own]
            # One row for each cell that others go on in, and of each pair which row that is.
            pairs = np.stack((heads, into), axis=1)
            _, first, row = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
            row = row.reshape(-1)
            old = np.searchsorted(needed, targets[own][first])
            gone = np.searchsorted(needed, merges.dropped[own])
            weights = merges.weights[own].astype(np.float64)
            means = [
                _means(rows[old, heads[first]], rows[gone, heads], weights, row)
                for rows in (side.codec.widen(side.stored) for side in sides(stored[layer], planes))
            ]
            numbers = np.searchsorted(changed, into[first])
            own_keys = means[0] if merges.keys else None
            changes.append(Change(layer, heads[first], numbers, own_keys, means[-1]))
        return cls(changed, changes)

    def put(self, stored: Array, layout: GroupLayout) -> None:
        """Write the rows into the stored bits of the changed cells, as `Planes.read` gives them."""
        for change in self.changes:
            own = sides(stored[change.layer], layout.spec.planes)
            for side, rows in ((own[0], change.keys), (own[-1], change.values)):
                if rows is not None:
                    side.stored[change.cells, change.heads] = side.codec.store(rows)


def _means(rows: Floats, gone: Floats, weights: Doubles, row: Longs) -> Floats:
    """Each of `rows` (n, E), with a weight of 1, and those of `gone` (m, E) that go on in it: the
    i-th in row `row[i]`, with the weight `weights[i]`."""
    total = rows.astype(np.float64)
    np.add.at(total, row, weights[:, None] * gone)
    whole = 1.0 + np.bincount(row, weights, len(rows))
    means: Floats = (total / whole[:, None]).astype(np.float32)
    return means


def check_merges(merges: Merges, layout: GroupLayout, held: GroupView, cells: Ints) -> None:
    """Raise OckhamError unless cells that are held, and dropped, go on in cells that stay."""
    layers, heads = _heads(layout)
    bounds = {
        "layers": (merges.layers, layers),
        "heads": (merges.heads, heads),
        "dropped": (merges.dropped, held.length),
        "into": (merges.into, cells.shape[-1]),
    }
    for name, (numbers, end) in bounds.items():
        if numbers.shape != merges.weights.shape or numbers.ndim != 1:
            raise OckhamError(
                f"{name} of merged cells has the shape {numbers.shape}, and their weights have "
                f"{merges.weights.shape}: each must be (m,)."
            )
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < end:
            raise OckhamError(f"{name} of merged cells must be from 0 to {end - 1}.")
    if not (np.isfinite(merges.weights) & (merges.weights >= 0)).all():
        raise OckhamError("weights of merged cells must be numbers from 0.")
    wide = np.broadcast_to(cells, (layers, heads, cells.shape[-1]))
    if (wide[merges.layers, merges.heads, merges.into] < 0).any():
        raise OckhamError("a cell cannot go on in a gap.")
    first = 0 if held.gaps is None else held.gaps[merges.layers, merges.heads]
    if (merges.dropped < first).any():
        raise OckhamError("a cell that a head has dropped before cannot go on in another.")
    stays = np.zeros((layers, heads, held.length + 1), bool)
    np.put_along_axis(stays, np.where(wide < 0, held.length, wide), True, axis=-1)
    if stays[merges.layers, merges.heads, merges.dropped].any():
        raise OckhamError("a cell that stays cannot go on in another.")


def _heads(layout: GroupLayout) -> tuple[int, int]:
    return len(layout.layers), layout.spec.uniform.heads
