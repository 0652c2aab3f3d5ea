"""From the residual stream to queries, and to keys and values in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import ATTENTION, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, Rope, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class AttentionInput(Operation):
    """Norm, projection to queries, keys and values, head norms, rotation, and the cache write.

    h = norm(x) (x itself where norm is None); q, k, v = split(qkv(h) + bias) by rows of `qkv`: H *
    E, then G * E, then G * E. `q_norm` and `k_norm` act on each head, or on all heads' elements
    together where `norm_whole`, `v_norm` on each head. Then q and k are rotated (not where rope is
    None), each head of q is multiplied by `query_weight`, and k and v are written to the layer's
    planes at the step's slots, rounded to the planes' dtype. Leaves q (R, H, E).

    Where `values_are_keys`, `qkv` has no rows of values: v is k before its norm. Where the layer
    `reads` another's keys and values, `qkv` has rows of queries alone, and nothing is written.

    With a table `beside`, h = [beside_norm(beside[ids]), norm(x)]: the row of the step's token,
    also where the row's input is an embedding, stands before the stream."""

    adaptable: ClassVar[tuple[str, ...]] = ("qkv",)

    layer: int
    group: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv: Linear  # ((H + 2 G) * E, D), ((H + G) * E, D) or (H * E, D)
    norm: Norm | None = None
    bias: Floats | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norm_whole: bool = False
    rope: Rope | None = None
    query_weight: Floats | None = None  # (E,)
    v_norm: Norm | None = None
    values_are_keys: bool = False
    reads: int | None = None
    beside: Linear | None = None  # (V, D)
    beside_norm: Norm | None = None

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, ATTENTION

    @property
    def changes_rotated_queries(self) -> bool:
        """Whether anything is done with queries after they were rotated."""
        return self.query_weight is not None or (self.rope is not None and self.rope.growth > 0)

    def matrices(self) -> dict[str, Linear]:
        return {"qkv": self.qkv}

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projection, its parts, and their rotated copies."""
        return {"heads": 3 * sizes.rows * self.qkv.out_features}
