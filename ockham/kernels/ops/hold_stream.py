"""The residual stream kept for blocks of a layer that stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.kernels.ops.operation import Operation, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class HoldStream(Operation):
    """held = x, of every row, whichever sublayers of the layer it runs. A later block of the layer
    that says so reads `held`, and adds to x what it gives: so blocks side by side read the same,
    and a row may run each of them without the others."""

    layer: int
    hidden_size: int

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        return {"held": sizes.rows * self.hidden_size}
