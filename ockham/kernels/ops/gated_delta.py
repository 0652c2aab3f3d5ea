"""The gated delta rule over a state of each head, in the place of attention."""

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
class GatedDelta(Operation):
    """A layer of gated delta rules (Yang et al., "Gated Delta Networks", 2024, arXiv:2412.06464),
    as Qwen3-Next has it.

    x, z, b, a = split(inputs(norm(r))) of the residual stream r: C channels and V values, and two
    numbers for each value head. See `recurrent` for what C and V are and what becomes of x. q and k
    are divided by their lengths, sqrt(|.|^2 + 1e-6), head by head, and q by sqrt(key_dim) too.
    Where value heads are `tiled`, value head h reads key head h % key_heads. The rate is
    sigmoid(b), the decay `decay` * log(1 + e^(a + decay_bias)), and updates are corrected.
    r += residual_scale * out(head_norm(o) * silu(z))."""

    adaptable: ClassVar[tuple[str, ...]] = ("inputs", "out")

    layer: int
    cells: int
    states: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    length: int
    inputs: Linear  # (C + V + 2 * value_heads, D)
    weight: Floats  # (length * C,)
    decay: Floats  # (value_heads,), negative
    decay_bias: Floats  # (value_heads,)
    head_norm: Norm  # (value_dim,)
    out: Linear  # (D, V)
    norm: Norm | None = None
    bias: Floats | None = None  # (C,), the convolution's
    residual_scale: float = 1.0
    tiled: bool = False

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, RECURRENT

    @property
    def shape(self) -> RecurrentShape:
        return RecurrentShape(
            self.key_heads, self.value_heads, self.key_dim, self.value_dim, self.length
        )

    def matrices(self) -> dict[str, Linear]:
        return {"inputs": self.inputs, "out": self.out}

    def cost(self) -> OperationCost:
        """What a head reads of its state, for a key and for a query, counts as products of its
        own."""
        shape = self.shape
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=self.length * shape.channels + 2 * shape.state,
            keeps=(self.cells, self.states),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projection, what is made of it, and what is kept."""
        row = self.inputs.out_features + self.shape.work_floats()
        return {"heads": sizes.rows * row, "made": sizes.rows * self.shape.cell_floats}
