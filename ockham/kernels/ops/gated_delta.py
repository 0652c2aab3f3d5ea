"""The gated delta rule over a state of each head, in the place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import RECURRENT, OperationCost, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class GatedDelta(Operation):
    """A layer of gated delta rules (Yang et al., "Gated Delta Networks", 2024, arXiv:2412.06464),
    as Qwen3-Next has it.

    x, z, b, a = split(inputs(norm(r))) of the residual stream r: C = 2 K + V channels (K of all
    key heads, V of all value heads), V, and two numbers for each value head. q, k, v = split(silu(
    the sum over the latest `length` tokens of their x times a row of `weight` (length, C), the
    newest with the last)). q and k are divided by their lengths, sqrt(|.|^2 + 1e-6), head by head,
    and q by sqrt(key_dim) too. Value head h reads key head h // (value_heads / key_heads), or where
    value heads are `tiled`, h % key_heads. With beta = sigmoid(b) and g = decay * log(1 + e^(a +
    decay_bias)), a head's state S (key_dim, value_dim) becomes, token by token,

        S := e^g S + k (beta (v - e^g k S)), and the token is given o = q S.

    What is promised of bits needs one order of operations: tokens stand in chunks of a page. With S
    the state at a chunk's start, and G_t the sum of g from there on,

        u_t = beta_t (v_t - e^(G_t) k_t S - the sum over j < t of e^(G_t - G_j) (k_t k_j) u_j),
        o_t = e^(G_t) q_t S + the sum over j <= t of e^(G_t - G_j) (q_t k_j) u_j, j ascending,

    and the chunk leaves e^(G_last) S + the sum over j of e^(G_last - G_j) k_j u_j. r += scale *
    out(head_norm(o) * silu(z)).

    The group `cells` keeps of each token x, k, u and G; the group `states`, at each page's end, S
    of all heads and x of the `length` - 1 tokens before. Rows of a sequence are consecutive."""

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
    residual_scale: float = 1.0
    tiled: bool = False

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, RECURRENT

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def matrices(self) -> dict[str, Linear]:
        return {"inputs": self.inputs, "out": self.out}

    def cost(self) -> OperationCost:
        """What a head reads of its state counts as a product of its own."""
        state = self.value_heads * self.key_dim * self.value_dim
        return OperationCost(
            self.sublayer,
            products=products_of(*self.matrices().values()),
            gate_values=self.length * self.channels + 2 * state,
            keeps=(self.cells, self.states),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The projection, what is made of it, and what is kept."""
        cell = cell_floats(self.key_heads, self.value_heads, self.key_dim, self.value_dim)
        values = self.value_heads * self.value_dim
        row = self.inputs.out_features + self.channels + 2 * self.value_heads + values
        return {"heads": sizes.rows * row, "made": sizes.rows * cell}


def cell_floats(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> int:
    """What is kept of a token."""
    return 3 * key_heads * key_dim + 2 * value_heads * value_dim + value_heads


def state_floats(
    key_heads: int, value_heads: int, key_dim: int, value_dim: int, length: int
) -> int:
    """What is kept at the end of a page."""
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return value_heads * key_dim * value_dim + (length - 1) * channels
