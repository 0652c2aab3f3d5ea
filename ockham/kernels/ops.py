"""The operations that a model is compiled to, each with the contract that every backend keeps.

A program is a short list of these, run in order over the activations of one step. The model does no
arithmetic of its own: what is not said here is not computed. Activations between operations are
fp32. R is the number of rows of the step, D the hidden size, H and G the numbers of query and
key-value heads, E the size of a head, V the vocabulary.

`x` (R, D) is the residual stream; `q` (R, H, E) and `a` (R, H * E) live between the parts of an
attention layer; `p` (R, experts per token) between router and experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ockham.core.arrays import Floats
from ockham.core.seams import Linear


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last axis, in fp32.

    `weight` already holds 1 + w where an architecture stores w."""

    weight: Floats  # (D,) or (E,) or (H * E,)
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """Rotary position embedding over the first `rotary_dim` elements of each head.

    Element i is paired with element i + rotary_dim / 2 and the pair is rotated by the angle
    position * inverse_frequencies[i] (computed in fp32); both are multiplied by `scale`. The
    frequencies are fixed when the model is loaded."""

    inverse_frequencies: Floats  # (rotary_dim / 2,)
    scale: float = 1.0

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True, slots=True, eq=False)
class Embed:
    """x = table[ids] * scale, or the step's own embedding (not scaled) where a row has one."""

    table: Linear  # (V, D)
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class AttentionInput:
    """Norm, projection to queries, keys and values, head norms, rotation, and the cache write.

    h = norm(x) (x itself where norm is None); q, k, v = split(qkv(h) + bias) by rows of `qkv`: H *
    E, then G * E, then G * E. `q_norm` and `k_norm` act on each head, or on all heads' elements
    together where `norm_whole`. Then q and k are rotated (not where rope is None), and k and v are
    written to the layer's planes at the step's slots, rounded to the planes' dtype. Leaves q."""

    layer: int
    group: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv: Linear  # ((H + 2 G) * E, D)
    norm: Norm | None = None
    bias: Floats | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norm_whole: bool = False
    rope: Rope | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Attend:
    """Attention of q over the keys and values that each row sees, as stored, in order.

    s = q . k * scale; s = softcap * tanh(s / softcap) where set; of the keys that the row sees only
    the last `window` count where set (the row's own included); a = softmax(s) . v. Query head h
    reads key-value head h * G // H. Leaves a (R, H * E)."""

    layer: int
    group: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOutput:
    """x += residual_scale * post_norm(out(a) + bias)."""

    layer: int
    out: Linear  # (D, H * E)
    bias: Floats | None = None
    post_norm: Norm | None = None
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """x += residual_scale * post_norm(down(act(gate) * up) + bias), gate, up = split(gate_up(h)).

    h = norm(x), or x where norm is None. `activation` is "silu" or "gelu_tanh". Rows of `gate_up`:
    the gate's I, then the up projection's I."""

    layer: int
    gate_up: Linear  # (2 * I, D)
    down: Linear  # (D, I)
    activation: str = "silu"
    norm: Norm | None = None
    gate_up_bias: Floats | None = None
    down_bias: Floats | None = None
    post_norm: Norm | None = None
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Choose each row's experts: h = norm(x); w = softmax(router(h)) in fp32, the `top_k` largest
    (lowest index on a tie), divided by their sum where `normalise`. Leaves h, the chosen experts
    (R, top_k) and their weights (R, top_k)."""

    layer: int
    router: Linear  # (experts, D)
    top_k: int
    normalise: bool
    norm: Norm | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """x += residual_scale * post_norm(sum over chosen experts of weight * down(act(gate) * up)).

    The sum runs in the order of the experts' indices. A shared expert adds
    sigmoid(shared_gate(h)) * down(act(gate) * up) (no sigmoid where shared_gate is None)."""

    layer: int
    gate_up: list[Linear]  # per expert (2 * I, D)
    down: list[Linear]  # per expert (D, I)
    activation: str = "silu"
    shared_gate_up: Linear | None = None
    shared_down: Linear | None = None
    shared_gate: Linear | None = None  # (1, D)
    post_norm: Norm | None = None
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """logits = softcap(out(norm(x)) * scale) for the rows that want them, and for no other; of the
    rows that want an argmax, only where the largest stands."""

    out: Linear  # (V, D)
    norm: Norm | None = None
    bias: Floats | None = None
    scale: float = 1.0
    softcap: float | None = None


Op = Embed | AttentionInput | Attend | AttentionOutput | FeedForward | Route | Experts | Head


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A compiled model: operations in order, and the named places where techniques attach.

    `breakpoints[name]` is the index of the operation before which the breakpoint stands:
    `layer.{i}.before`, `layer.{i}.pattern` (before Attend), `layer.{i}.router`,
    `layer.{i}.experts`, `layer.{i}.after` and `head`. A backend runs any range of the operations
    without returning to Python; with nothing attached, a step is one call.
    """

    ops: tuple[Op, ...]
    breakpoints: dict[str, int] = field(default_factory=dict)
