"""The projection that ends an attention branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import ATTENTION, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOutput(Operation):
    """x += residual_scale * post_norm(out(a) + bias); then x = stream_norm(x), where there is
    one."""

    adaptable: ClassVar[tuple[str, ...]] = ("out",)

    layer: int
    out: Linear  # (D, H * E)
    bias: Floats | None = None
    post_norm: Norm | None = None
    residual_scale: float = 1.0
    stream_norm: Norm | None = None

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, ATTENTION

    def matrices(self) -> dict[str, Linear]:
        return {"out": self.out}
