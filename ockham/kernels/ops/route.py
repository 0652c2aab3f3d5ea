"""The router of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.core.arrays import Floats
from ockham.core.cost import FEED_FORWARD, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation


@dataclass(frozen=True, slots=True, eq=False)
class Route(Operation):
    """Choose each row's experts: h = norm(x); w = softmax(router(h) + bias) in fp32, or where
    `sigmoid` the logistic function of each, 1 / (1 + e^-s). The `top_k` largest (lowest index on a
    tie) are chosen, and divided by their sum where `normalise`, which makes them the softmax of the
    chosen alone; then they are multiplied with `scale`, and each with that of its expert in
    `expert_scales`. With a `correction` they are the largest of
    w + correction, and their weights are those of w. Experts are `groups` groups of neighbours, of
    which the `kept_groups` best are chosen from: a group is as good as the sum of the `group_best`
    largest of what its experts are chosen by. Leaves h, the chosen experts (R, top_k) and
    their weights (R, top_k)."""

    layer: int
    router: Linear  # (experts, D)
    top_k: int
    normalise: bool
    norm: Norm | None = None
    correction: Floats | None = None  # (experts,)
    bias: Floats | None = None  # (experts,)
    sigmoid: bool = False
    scale: float = 1.0
    expert_scales: Floats | None = None  # (experts,)
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 1

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, FEED_FORWARD

    def matrices(self) -> dict[str, Linear]:
        return {"router": self.router}
