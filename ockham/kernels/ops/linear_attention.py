"""Linear attention by a Taylor polynomial, over a state of each head, in the place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.cost import RECURRENT, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of
from ockham.kernels.ops.recurrent import RecurrentShape


@dataclass(frozen=True, slots=True, eq=False)
class LinearAttention(Operation):
    """The linear attention of Based (Arora et al., "Simple linear attention language models balance
    the recall-throughput tradeoff", 2024, arXiv:2402.18668, section 4).

    q, k, v = split(inputs(norm(r))) of the residual stream r: `features` numbers of each head's
    query and key, `value_dim` of its value. With F(x) = (1, x / features^(1/4), all x_i x_j /
    sqrt(2 features)), F(q) F(k) is the second-order Taylor polynomial of e^(q k / sqrt(features)).
    What `recurrent` describes gives for queries F(q), keys F(k) and values (v, 1), with a rate of 1
    and no decay, a head's sums o and, of the weights alone, w: r += residual_scale * out(o / (w +
    eps))."""

    adaptable: ClassVar[tuple[str, ...]] = ("inputs", "out")

    layer: int
    cells: int
    states: int
    heads: int
    features: int
    value_dim: int
    inputs: Linear  # (heads * (2 * features + value_dim), D)
    out: Linear  # (D, heads * value_dim)
    norm: Norm | None = None
    eps: float = 1e-12
    residual_scale: float = 1.0

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, RECURRENT

    @property
    def shape(self) -> RecurrentShape:
        return based_shape(self.heads, self.features, self.value_dim)

    def matrices(self) -> dict[str, Linear]:
        return {"inputs": self.inputs, "out": self.out}

    def cost(self) -> OperationCost:
        """What a head reads of its state counts as a product of its own."""
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=self.shape.channels + self.shape.state,
            keeps=(self.cells, self.states),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projection, what is made of it, and what is kept."""
        row = self.inputs.out_features + self.shape.channels + self.shape.work_floats()
        return {"heads": sizes.rows * row, "made": sizes.rows * self.shape.cell_floats}


def based_shape(heads: int, features: int, value_dim: int) -> RecurrentShape:
    """What such layers keep: of each head's key the mapped features, of its value one more."""
    return RecurrentShape(heads, heads, 1 + features + features**2, value_dim + 1, 0)
