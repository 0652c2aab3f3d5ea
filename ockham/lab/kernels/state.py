"""Random keys and values, so that a step over long contexts costs no prefill of them."""

from __future__ import annotations

import math

import numpy as np

from ockham.core.arrays import Longs
from ockham.kernels.base import Planes
from ockham.kernels.layout import GroupLayout
from ockham.kernels.reference.stored import CODECS

WRITE_VALUES = 1 << 24
"""Keys and values that are written at a time."""


def fill(planes: Planes, group: int, layout: GroupLayout, slots: Longs) -> None:
    """Give `slots` random keys and values, the same in every layer and again and again."""
    at_once = max(1, WRITE_VALUES // math.prod(layout.stored_shape(1)))
    rng = np.random.default_rng(1)
    plane = layout.spec.uniform
    count = min(at_once, len(slots))
    rows = [
        CODECS[each.dtype].store(rng.standard_normal((count, plane.heads, plane.width), np.float32))
        for each in layout.spec.planes
    ]
    alike = len({row.shape for row in rows}) == 1
    state = np.stack(rows) if alike else np.concatenate(rows, axis=-1)[None]
    stored = np.broadcast_to(state, layout.stored_shape(count))
    for start in range(0, len(slots), count):
        part = slots[start : start + count]
        planes.write(group, part, stored[:, :, : len(part)])
