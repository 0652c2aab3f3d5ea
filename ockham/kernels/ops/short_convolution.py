"""A gated causal convolution over the latest tokens, in the place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import RECURRENT, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class ShortConvolution(Operation):
    """The gated short convolution of LFM2 (Liquid AI, 2025), or where it is `activated` that of
    Based (Arora et al. 2024, arXiv:2402.18668, appendix E).

    b, c, v = split(inputs(h) + inputs_bias), h = norm(x), W of each. u = b * v is written to the
    layer's plane as fp32, at those of the step's slots that are not negative. y is the sum, from
    the oldest on, over the latest `length` cells that the row sees, its own the last, of their u
    times a row of `weight` (length, W), whose last row is the newest cell's: what stands before the
    first token counts as zero.
    x += residual_scale * (out(c * (y + bias)) + out_bias). Where it is `activated`, u, c =
    split(inputs(h) + inputs_bias), and silu(y + bias) takes the place of y + bias."""

    adaptable: ClassVar[tuple[str, ...]] = ("inputs", "out")

    layer: int
    group: int
    length: int
    inputs: Linear  # (3 * W or 2 * W, D)
    weight: Floats  # (length * W,)
    out: Linear  # (D, W)
    norm: Norm | None = None
    inputs_bias: Floats | None = None  # (3 * W or 2 * W,)
    bias: Floats | None = None  # (W,)
    out_bias: Floats | None = None  # (D,)
    residual_scale: float = 1.0
    activated: bool = False

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, RECURRENT

    def matrices(self) -> dict[str, Linear]:
        return {"inputs": self.inputs, "out": self.out}

    def cost(self) -> OperationCost:
        """Both gates and the sum count as values of an activation product."""
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=(self.length + 2) * self.out.in_features,
            keeps=(self.group,),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projection, and what is kept of it and made of that."""
        return {
            "heads": 2 * sizes.rows * self.inputs.out_features,
            "made": sizes.rows * self.out.in_features,
        }
