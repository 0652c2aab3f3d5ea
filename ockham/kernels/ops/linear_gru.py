"""A gated linear recurrence over a state of each channel, in the place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.core.arrays import Floats
from ockham.core.cost import RECURRENT, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class LinearGru(Operation):
    """The token mixer of MatMul-free models, MLGRU (Zhu et al., "Scalable MatMul-free Language
    Modeling", 2024, arXiv:2406.02528, section 3.3.1), as published: a gated recurrence of each of W
    channels (HGRN), whose gates do not depend on the state.

    Of the residual stream r, each matrix behind a norm of its own,

        f = bound + (1 - bound) * sigmoid(forget(forget_norm(r))), without a bound the sigmoid,
        i = silu(input(input_norm(r))) * (1 - f), g = gate(gate_norm(r)),

    the state s becomes f * s + i, token by token, from zero on, which is one order of operations
    however a text is cut. With y = silu(s) * inner_norm(g), r += residual_scale *
    out(out_norm(y)).

    The group `cells` keeps of each token s, the group `ends`, at each page's end, s. Rows may
    branch, as those of `recurrent`. No adapter adds to a matrix that has a norm of its own."""

    layer: int
    cells: int
    ends: int
    input: Linear  # (W, D)
    forget: Linear  # (W, D)
    gate: Linear  # (W, D)
    out: Linear  # (D, W)
    inner_norm: Norm  # (W,)
    input_norm: Norm | None = None
    forget_norm: Norm | None = None
    gate_norm: Norm | None = None
    out_norm: Norm | None = None  # (W,)
    bound: Floats | None = None  # (W,)
    residual_scale: float = 1.0

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, RECURRENT

    @property
    def width(self) -> int:
        """Channels, and floats of a state."""
        return self.out.in_features

    def matrices(self) -> dict[str, Linear]:
        return {"input": self.input, "forget": self.forget, "gate": self.gate, "out": self.out}

    def cost(self) -> OperationCost:
        """The gates and the state count as values of activation products."""
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=3 * self.width,
            keeps=(self.cells, self.ends),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """What the first three matrices give, and the states."""
        return {"heads": 3 * sizes.rows * self.width, "made": sizes.rows * self.width}
