"""The end of a layer that scales the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.core.arrays import Floats
from ockham.kernels.ops.operation import Operation


@dataclass(frozen=True, slots=True, eq=False)
class ScaleStream(Operation):
    """x *= scale, of every row, whichever sublayers of the layer it runs. What the layer leaves,
    its hidden state, is what comes out."""

    layer: int
    scale: Floats  # (1,)
