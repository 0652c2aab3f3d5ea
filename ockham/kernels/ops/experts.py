"""The experts that a router chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ockham.core.arrays import Floats
from ockham.core.cost import FEED_FORWARD, OperationCost, ProductCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class Experts(Operation):
    """x += residual_scale * post_norm(sum over chosen experts of weight * down(act(gate) * up)).

    `activation` is one of those of `FeedForward`, and biases are added as there. The sum runs in
    the order of the experts' indices. A shared expert adds sigmoid(shared_gate(h)) *
    down(act(gate) * up) (no sigmoid where shared_gate is None). `top_k` is the router's: how many
    experts a row is sent to. Experts may be of unequal widths I. Where they are not `gated`, nor
    is the shared one, a `gate_up` has I rows, and act(gate_up(h)) takes the place of act(gate) *
    up. With a `shortcut`, x = shortcut(x) comes before the sum. The experts read the router's h, or
    norm(x) where there is a `norm`; `routed_norm` acts on the sum of the chosen before the shared
    expert is added. The shared expert reads what the others do, or `shared_norm`(x), and what it
    gives is normed by `shared_post_norm`."""

    layer: int
    top_k: int
    gate_up: list[Linear]  # per expert (2 * I, D), or (I, D)
    down: list[Linear]  # per expert (D, I)
    activation: str = "silu"
    shared_gate_up: Linear | None = None
    shared_down: Linear | None = None
    shared_gate: Linear | None = None  # (1, D)
    post_norm: Norm | None = None
    residual_scale: float = 1.0
    shortcut: Linear | None = None  # (D, D)
    gate_up_bias: Floats | None = None  # 2 * I of each expert, one after another
    down_bias: Floats | None = None  # D of each expert, one after another
    norm: Norm | None = None
    routed_norm: Norm | None = None
    shared_norm: Norm | None = None
    shared_post_norm: Norm | None = None
    gated: bool = True

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, FEED_FORWARD

    def matrices(self) -> dict[str, Linear]:
        routed = {
            f"experts.{number}.{name}": matrix
            for name, matrices in (("gate_up", self.gate_up), ("down", self.down))
            for number, matrix in enumerate(matrices)
        }
        return routed | self._shared()

    def cost(self) -> OperationCost:
        """Experts of unequal widths cost what they cost on average."""
        count = len(self.down)
        routed = tuple(
            _mean(products_of(*matrices, experts=count, experts_per_row=self.top_k))
            for matrices in (self.gate_up, self.down)
        )
        return OperationCost(
            self.sublayer,
            products=products_of(*self._shared().values()) + routed,
            gate_values=self.top_k * sum(each.in_features for each in self.down) // count,
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """Gates and ups of one expert's rows, their products, and what the activation makes."""
        widest = max(each.in_features for each in self.down)
        shared = 0 if self.shared_down is None else self.shared_down.in_features
        return {"inner": 4 * sizes.rows * max(widest, shared)}

    def _shared(self) -> dict[str, Linear]:
        shared = {
            "shared.gate_up": self.shared_gate_up,
            "shared.down": self.shared_down,
            "shared.gate": self.shared_gate,
            "shortcut": self.shortcut,
        }
        return {name: matrix for name, matrix in shared.items() if matrix is not None}


def _mean(products: Sequence[ProductCost]) -> ProductCost:
    """What products of one kind cost on average, rounded down."""
    count = len(products)
    return msgspec.structs.replace(
        products[0],
        outputs=sum(each.outputs for each in products) // count,
        inputs=sum(each.inputs for each in products) // count,
        nbytes=sum(each.nbytes for each in products) // count,
    )
