"""The branch by which a layer's own inputs come into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.cost import FEED_FORWARD, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputBranch(Operation):
    """x += norm(projection(act(gate(x)) * p)), p the values of `LayerInputs` from `first` on, as
    many as `gate` has rows. `activation` is one of those of `FeedForward`."""

    adaptable: ClassVar[tuple[str, ...]] = ("input_gate", "input_projection")

    layer: int
    first: int
    input_gate: Linear  # (P, D)
    input_projection: Linear  # (D, P)
    activation: str
    norm: Norm | None = None

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, FEED_FORWARD

    def matrices(self) -> dict[str, Linear]:
        return {"input_gate": self.input_gate, "input_projection": self.input_projection}

    def cost(self) -> OperationCost:
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=self.input_gate.out_features,
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The gates, and what the activation makes of them."""
        return {"inner": 3 * sizes.rows * self.input_gate.out_features}
