"""From the residual stream to queries of multi-head latent attention, and to one key of all heads
in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.cost import ATTENTION, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, Rope, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class LatentInput(Operation):
    """The input of multi-head latent attention in its absorbed form (DeepSeek-V2, 2024,
    arXiv:2405.04434): what is kept of a token is one row for all heads.

    u, r, c = split(inputs(norm(x))) by rows of `inputs`: the queries' input, P rotated elements of
    the key, L elements of the latent. The key of the token is k = [rotate(r), latent_norm(c)] (E =
    P + L), which is written to the layer's plane at the step's slots, rounded to the plane's dtype;
    its value is the same row. The queries are split(query_up(query_norm(u))) where there is a
    `query_up`, else u: of each head P elements p and N elements n. Leaves q (R, H, E): of head h
    [rotate(p), keys[h](n)]. Where `rope` is None, nothing is rotated."""

    adaptable: ClassVar[tuple[str, ...]] = ()
    kv_heads: ClassVar[int] = 1

    layer: int
    group: int
    heads: int
    head_dim: int  # P + L
    inputs: Linear  # (queries + P + L, D)
    keys: list[Linear]  # of each head (L, N)
    latent_norm: Norm  # (L,)
    norm: Norm | None = None
    query_norm: Norm | None = None
    query_up: Linear | None = None  # (H * (P + N), queries)
    rope: Rope | None = None

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, ATTENTION

    def matrices(self) -> dict[str, Linear]:
        up = {} if self.query_up is None else {"query_up": self.query_up}
        of_heads = {f"keys.{head}": matrix for head, matrix in enumerate(self.keys)}
        return {"inputs": self.inputs, **up, **of_heads}

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projections, the queries before and after they are absorbed, and their copies."""
        up = 0 if self.query_up is None else self.query_up.out_features
        absorbed = self.heads * self.head_dim
        return {"heads": sizes.rows * (2 * self.inputs.out_features + 2 * up + 3 * absorbed)}
