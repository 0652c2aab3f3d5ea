"""What layers share that keep a state of each head, which every token changes.

A row x of C = 2 K + V channels (K = key_heads * key_dim, V = value_heads * value_dim) goes through
a causal convolution: q, k, v = split(silu(bias + the sum over the latest `length` tokens of their x
times a row of `weight` (length, C), the newest with the last)); with a length of 0 it is q, k, v as
it is, and x is not kept. Value head h reads key head
h // (value_heads / key_heads). With a rate b and a decay g of each token and head, which the
operation makes of its inputs, a head's state S (key_dim, value_dim) becomes, token by token,

    S := e^g S + k u, and the token is given o = q S,

where u = b v, or b (v - e^g k S) where the operation corrects what the state gives for the key.

What is promised of bits needs one order of operations: tokens stand in chunks of a page. With S the
state at a chunk's start, and G_t the sum of g from there on,

    u_t = b_t (v_t [- e^(G_t) k_t S - the sum over j < t of e^(G_t - G_j) (k_t k_j) u_j]),
    o_t = e^(G_t) q_t S + the sum over j <= t of e^(G_t - G_j) (q_t k_j) u_j, j ascending,

and the chunk leaves e^(G_last) S + the sum over j of e^(G_last - G_j) k_j u_j.

The group `cells` keeps of each token x, k, u and G; the group `states`, at each page's end, S of
all heads and x of the `length` - 1 tokens before. A draft's rows may branch: each is computed from
its own ancestors. What ends a page must stand in order there, and so must what comes after it in
the step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """The sizes of such a layer; `length` is that of the convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    length: int

    @property
    def keys(self) -> int:
        """Channels of all keys, and of all queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        return 2 * self.keys + self.values

    @property
    def state(self) -> int:
        """Floats of the states of all heads."""
        return self.value_heads * self.key_dim * self.value_dim

    @property
    def cell_floats(self) -> int:
        """What is kept of a token of the chunk that is not full."""
        return self.entered + self.keys + self.values + self.value_heads

    @property
    def entered(self) -> int:
        """What is kept of a token for the convolution."""
        return self.channels if self.length else 0

    @property
    def end_floats(self) -> int:
        """What is kept at the end of a chunk."""
        return self.state + max(self.length - 1, 0) * self.channels

    def work_floats(self) -> int:
        """What a row needs beside its projection while it is computed, and is not kept."""
        return self.channels + 2 * self.value_heads + self.values
