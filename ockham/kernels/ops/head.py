"""The output head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.core.arrays import Floats
from ockham.core.cost import OperationCost
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class Head(Operation):
    """logits = softcap(out(norm(x)) * scale) for the rows that want them, and for no other; of the
    rows that want an argmax, only where the largest stands."""

    out: Linear  # (V, D)
    norm: Norm | None = None
    bias: Floats | None = None
    scale: float = 1.0
    softcap: float | None = None

    def matrices(self) -> dict[str, Linear]:
        return {"head": self.out}

    def cost(self) -> OperationCost:
        return OperationCost(None, products=products_of(self.out, head=True))

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The logits, and the sampler's copy."""
        return {"logits": 2 * sizes.head_rows * self.out.out_features}
