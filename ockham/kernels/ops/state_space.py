"""A selective state space over a state of each head, in the place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import RECURRENT, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of
from ockham.kernels.ops.recurrent import RecurrentShape


@dataclass(frozen=True, slots=True, eq=False)
class StateSpace(Operation):
    """A layer of Mamba 2 (Dao and Gu, "Transformers are SSMs", 2024, arXiv:2405.21060).

    x, z, s = split(inputs(norm(r)) + inputs_bias) of the residual stream r: C channels and V
    values, and a number for each head. See `recurrent` for what C and V are and what becomes of x:
    the queries are what the papers call C, the keys B, the values x; key heads are their groups.
    The rate is the step log(1 + e^(step_scale * s + step_bias)), at least `shortest_step` and at
    most `longest_step`, the decay `decay` times the step, and updates are not corrected. With g =
    silu(gate_scale * z), y = group_norm((o + skip * v) * g), or where `norm_first` group_norm(o +
    skip * v) * g, r += residual_scale * (outputs(y) + out_bias), where the norm is one of each of
    `norm_groups` parts of a row. Where it is `held`, the projection reads what the layer's
    `HoldStream` kept in the place of r."""

    adaptable: ClassVar[tuple[str, ...]] = ("inputs", "outputs")

    layer: int
    cells: int
    states: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    length: int
    inputs: Linear  # (C + V + value_heads, D)
    weight: Floats  # (length * C,)
    decay: Floats  # (value_heads,), negative
    step_bias: Floats  # (value_heads,)
    skip: Floats  # (value_heads,)
    outputs: Linear  # (D, V)
    norm: Norm | None = None
    group_norm: Norm | None = None  # (V,)
    norm_groups: int = 1
    bias: Floats | None = None  # (C,), the convolution's
    inputs_bias: Floats | None = None  # (C + V + value_heads,)
    out_bias: Floats | None = None  # (D,)
    shortest_step: float = 0.0
    longest_step: float = float("inf")
    residual_scale: float = 1.0
    norm_first: bool = False
    gate_scale: float = 1.0
    step_scale: float = 1.0
    held: bool = False

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, RECURRENT

    @property
    def shape(self) -> RecurrentShape:
        return RecurrentShape(
            self.key_heads, self.value_heads, self.key_dim, self.value_dim, self.length
        )

    def matrices(self) -> dict[str, Linear]:
        return {"inputs": self.inputs, "outputs": self.outputs}

    def cost(self) -> OperationCost:
        """What a head reads of its state counts as a product of its own."""
        shape = self.shape
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=self.length * shape.channels + shape.state,
            keeps=(self.cells, self.states),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projection, what is made of it, and what is kept."""
        row = self.inputs.out_features + self.shape.work_floats()
        return {"heads": sizes.rows * row, "made": sizes.rows * self.shape.cell_floats}
