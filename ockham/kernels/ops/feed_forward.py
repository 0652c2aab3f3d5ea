"""The feed-forward branch, gated or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import FEED_FORWARD, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward(Operation):
    """x += residual_scale * post_norm(down(act(gate_scale * gate) * up) + bias), with gate, up =
    split(gate_up(h)).

    h = norm(x), or x where norm is None. `activation` is "silu", "gelu_tanh", "gelu" (with the
    error function), "relu", "relu_squared" or "clamped_swiglu": g * sigmoid(1.702 * g) * (u + 1),
    where g is the gate, at most 7, and u the up, kept in [-7, 7]; not gated, the factor of g alone.
    Rows of `gate_up`: the gate's I, then the up projection's I. Where not `gated`, `gate_up` has I
    rows, and act(gate_scale * gate_up(h)) takes the place of act(gate_scale * gate) * up. Where
    there is an `inner_norm`, of the kind "rms", it norms what `down` multiplies. In the end x =
    stream_norm(x), where there is one. With a `shortcut`, x = shortcut(x) between h and the sum. Of
    the I values that `down` multiplies, a step may want the first ones (`Step.leading`): then the
    others are 0, and nothing of them is computed."""

    adaptable: ClassVar[tuple[str, ...]] = ("gate_up", "down")

    layer: int
    gate_up: Linear  # (2 * I, D), or (I, D)
    down: Linear  # (D, I)
    activation: str = "silu"
    norm: Norm | None = None
    gate_up_bias: Floats | None = None
    down_bias: Floats | None = None
    post_norm: Norm | None = None
    residual_scale: float = 1.0
    gated: bool = True
    stream_norm: Norm | None = None
    shortcut: Linear | None = None  # (D, D)
    inner_norm: Norm | None = None  # (I,)
    gate_scale: float = 1.0

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, FEED_FORWARD

    @property
    def neurons(self) -> int:
        return self.down.in_features

    def matrices(self) -> dict[str, Linear]:
        own = {"gate_up": self.gate_up, "down": self.down, "shortcut": self.shortcut}
        return {name: matrix for name, matrix in own.items() if matrix is not None}

    def cost(self) -> OperationCost:
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=self.down.in_features,
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """Gates and ups, their products, and what the activation makes on the way."""
        return {"inner": 4 * sizes.rows * self.down.in_features}
