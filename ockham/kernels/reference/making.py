"""State made of keys and values that no step computed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.kernels.base import GroupLayout
from ockham.kernels.ops import Rope
from ockham.kernels.reference.formulas import rotate, rotation
from ockham.kernels.reference.planes import sides_of
from ockham.kernels.reference.stored import Stored


def stored_state(
    layout: GroupLayout,
    ropes: Mapping[int, Rope | None],
    made: Mapping[int, tuple[Floats, Floats]],
    positions: Ints,
) -> Stored:
    """What `Planes.write` takes of a group: of each of its layers the keys, rotated to their
    positions (n,), and the values, both (n, kv_heads, head_dim), rounded to the planes' types."""
    state = np.zeros(layout.stored_shape(len(positions)), layout.spec.uniform.stored)
    for index, (of_layer, layer) in enumerate(zip(state, layout.layers, strict=True)):
        keys, values = made[layer]
        rope = ropes.get(layer)
        if rope is not None:
            keys = np.array(keys, np.float32)
            rotate(keys, *rotation(rope, positions))
        pairs = zip(sides_of(layout, index, of_layer), (keys, values), strict=True)
        for (stored, codec), rows in pairs:
            stored[...] = codec.store(rows)
    return state
