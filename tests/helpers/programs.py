"""Random programs over random weights: every field of every operation, without a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.registry import find
from ockham.core.seams import Linear
from ockham.kernels.base import Backend
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    DualChunk,
    Embed,
    Experts,
    FeedForward,
    GatedDelta,
    Head,
    HoldStream,
    LinearAttention,
    LinearGru,
    Norm,
    Operation,
    Program,
    Rope,
    Route,
    ShortConvolution,
    StateSpace,
)
from ockham.kernels.ops.linear_attention import based_shape
from ockham.kernels.ops.recurrent import RecurrentShape
from ockham.kernels.reference.stored import mirror_of

VOCABULARY = 101


@dataclass(frozen=True)
class Shape:
    """The sizes of a random program, and what its operations have."""

    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 40
    layers: int = 2
    windows: tuple[int | None, ...] = (None,)  # of the layers, in turn
    softcap: float | None = None
    sinks: bool = False
    qk_norm: str | None = None  # "head" or "whole"
    rotary_dim: int | None = None  # None: the whole head; 0: no rotation
    rope_scale: float = 1.0
    dual_chunk: DualChunk | None = None
    biases: bool = False
    post_norms: bool = False
    pre_norms: bool = True
    stream_norms: bool = False
    norm_kind: Literal["rms", "layer"] = "rms"
    gated: bool = True
    positions: int = 0  # learned ones of each of two types
    causal: bool = True
    growth: float = 0.0
    query_weight: bool = False
    activation: str = "silu"
    residual_scale: float = 1.0
    embedding_scale: float = 1.0
    tied: bool = False
    head_bias: bool = False
    head_scale: float = 1.0
    head_softcap: float | None = None
    experts: int = 0
    top_k: int = 2
    normalise: bool = True
    sigmoid: bool = False
    routed_scale: float = 1.0
    correction: bool = False
    shared: bool = False
    shared_gate: bool = False
    convolution: int = 0  # over how many tokens that of one more layer is; 0: there is none
    wide: int = 0  # its channels, where it is activated; 0: it is not
    linear: tuple[int, int, int] | None = None
    """Heads, features and the size of values of one more layer's linear attention."""
    delta: tuple[int, int, int, int, int] | None = None
    space: tuple[int, int, int, int, int] | None = None
    """Heads of keys and values, their sizes, and the convolution's length, of one more layer."""
    beside: bool = False  # attention in that layer too, side by side
    multipliers: tuple[float, float] = (1.0, 1.0)  # of gates, and of the steps of state spaces
    norm_first: bool = False  # or gated first
    tiled: bool = False  # its value heads
    gru: int = 0  # channels of one more layer's linear recurrence; 0: there is none
    second_norms: bool = False  # behind that of the branch, one of its own for each matrix
    output_gates: bool = False
    inner_norms: bool = False
    weights: str = "fp32"
    weight_scale: float = 1.0  # of a feed-forward's gates and ups
    state: str = "float32"
    mirrors: bool = False  # random ones, of keys in int4
    page_tokens: int = 16
    pages: int = 64


@dataclass
class Bound:
    """What tests.helpers.steps.Stepper asks of a model."""

    backend: Backend
    program: Program
    layouts: tuple[GroupLayout, ...]


def on(backend: Backend, shape: Shape, seed: int = 0) -> Bound:
    """A random program of this shape on a backend; the same weights for the same seed."""
    return Bound(backend, random_program(shape, seed), layouts_of(shape))


def layouts_of(shape: Shape) -> tuple[GroupLayout, ...]:
    """One group for each window, and one for all where rows see what follows them; then one of the
    convolution."""
    windows = list(dict.fromkeys(shape.windows)) if shape.causal else [None]
    attending = tuple(
        GroupLayout(
            tuple(
                i
                for i in range(shape.layers + shape.beside)
                if not shape.causal or _window(shape, i) == window
            ),
            StateSpec.attention(shape.kv_heads, shape.head_dim, shape.state, window),
            shape.pages,
            shape.page_tokens,
            _mirrors(shape) if shape.mirrors else None,
        )
        for window in windows
    )
    sizes, found = (shape.pages, shape.page_tokens), list(attending)
    if shape.convolution:
        rows = StateSpec.rows(shape.wide or shape.hidden, shape.convolution)
        found.append(GroupLayout((shape.layers,), rows, *sizes))
    if shape.delta is not None or shape.space is not None or shape.linear is not None:
        own = (
            RecurrentShape(*(shape.delta or shape.space or ()))
            if shape.linear is None
            else based_shape(*shape.linear)
        )
        cells = StateSpec.rows(own.cell_floats, 1)
        ends = StateSpec.chunk_ends(own.end_floats, shape.page_tokens)
        found += [GroupLayout((shape.layers,), each, *sizes) for each in (cells, ends)]
    if shape.gru:
        cells = StateSpec.rows(shape.gru, 1)
        ends = StateSpec.chunk_ends(shape.gru, shape.page_tokens)
        found += [GroupLayout((shape.layers,), each, *sizes) for each in (cells, ends)]
    return tuple(found)


def _mirrors(shape: Shape) -> Floats:
    sizes = (shape.layers, shape.kv_heads, shape.head_dim)
    return mirror_of(np.random.default_rng(3).standard_normal(sizes).astype(np.float32))


def tolerance(shape: Shape) -> float:
    """How far two backends may be apart, as a share of the largest value. Rounding turns a last bit
    into a unit of 2^-8 in bf16, of 1/127 of a row's largest value in int8, and of 2/15 in int4;
    beside which the cpu backend alone rounds weights of attention to 8 bits, so that later layers
    get other codes."""
    if "int4" in shape.state:
        return 30e-2
    return 2e-2 if shape.weights == "bf16" or shape.state != "float32" else 2e-5


def _window(shape: Shape, layer: int) -> int | None:
    return shape.windows[layer % len(shape.windows)]


def random_program(shape: Shape, seed: int = 0) -> Program:
    """Weights are drawn so that activations neither vanish nor explode."""
    return _Builder(shape, np.random.default_rng(seed)).program()


class _Builder:
    def __init__(self, shape: Shape, rng: np.random.Generator) -> None:
        self.s, self.rng = shape, rng
        self.format = find("format", shape.weights).cls()
        self.rope = None
        rotary = shape.head_dim if shape.rotary_dim is None else shape.rotary_dim
        if rotary:
            exponents = np.arange(0, rotary, 2, dtype=np.float32) / rotary
            self.rope = Rope(
                (1.0 / 10000.0**exponents).astype(np.float32),
                shape.rope_scale,
                shape.dual_chunk,
                shape.growth,
                7,
            )

    def matrix(self, outputs: int, inputs: int, scale: float = 1.0) -> Linear:
        spread = scale / np.sqrt(inputs)
        values = (self.rng.standard_normal((outputs, inputs)) * spread).astype(np.float32)
        if self.s.weights == "bf16":
            return self.format.pack(outputs, inputs, [values.astype(ml_dtypes.bfloat16)])
        return self.format.pack(outputs, inputs, [values])

    def vector(self, length: int, present: bool = True, mean: float = 0.0) -> Any:
        if not present:
            return None
        return (mean + 0.3 * self.rng.standard_normal(length)).astype(np.float32)

    def norm(self, length: int, present: bool = True) -> Norm | None:
        """Of rows of the stream."""
        if not present:
            return None
        weight, layer = self.vector(length, mean=1.0), self.s.norm_kind == "layer"
        second = self.head_norm(length, self.s.second_norms)
        return Norm(weight, 1e-5, self.s.norm_kind, self.vector(length, layer), second)

    def head_norm(self, length: int, present: bool) -> Norm | None:
        return Norm(self.vector(length, mean=1.0), 1e-5) if present else None

    def program(self) -> Program:
        s = self.s
        table = self.matrix(VOCABULARY, s.hidden, 4.0)
        embed = Embed(table, s.embedding_scale)
        if s.positions:
            learned = self.matrix(s.positions, s.hidden, 4.0), self.matrix(2, s.hidden, 4.0)
            embed = Embed(table, s.embedding_scale, *learned, self.norm(s.hidden))
        operations: list[Operation] = [embed]
        for layer in range(s.layers):
            operations += self.attention(layer)
            operations += self.mixture(layer) if s.experts else [self.feed_forward(layer)]
        if s.convolution:
            operations += [self.convolution(s.layers), self.feed_forward(s.layers)]
        if s.delta is not None:
            operations += [self.delta(s.layers, *s.delta), self.feed_forward(s.layers)]
        if s.space is not None:
            if s.beside:
                operations += [HoldStream(s.layers, s.hidden), *self.attention(s.layers)]
            operations += [self.space(s.layers, *s.space), self.feed_forward(s.layers)]
        if s.linear is not None:
            operations += [self.linear(s.layers, *s.linear), self.feed_forward(s.layers)]
        if s.gru:
            operations += [self.gru(s.layers, s.gru), self.feed_forward(s.layers)]
        operations.append(
            Head(
                table if s.tied else self.matrix(VOCABULARY, s.hidden, 2.0),
                self.norm(s.hidden),
                self.vector(VOCABULARY, s.head_bias),
                s.head_scale,
                s.head_softcap,
            )
        )
        return Program(tuple(operations))

    def attention(self, layer: int) -> list[Operation]:
        s = self.s
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        whole, has_norm = s.qk_norm == "whole", s.qk_norm is not None
        group = list(dict.fromkeys(s.windows)).index(_window(s, layer)) if s.causal else 0
        sizes = (s.heads, s.kv_heads, s.head_dim)
        return [
            AttentionInput(
                layer,
                group,
                *sizes,
                qkv=self.matrix(q + 2 * kv, s.hidden, 1.5),
                norm=self.norm(s.hidden, s.pre_norms),
                bias=self.vector(q + 2 * kv, s.biases),
                q_norm=self.head_norm(q if whole else s.head_dim, has_norm),
                k_norm=self.head_norm(kv if whole else s.head_dim, has_norm),
                norm_whole=whole,
                rope=self.rope,
                query_weight=self.vector(s.head_dim, s.query_weight, 1.0),
            ),
            Attend(
                layer,
                group,
                *sizes,
                scale=s.head_dim**-0.5,
                softcap=s.softcap,
                window=_window(s, layer),
                causal=s.causal,
                sinks=self.vector(s.heads, s.sinks, mean=1.0),
            ),
            AttentionOutput(
                layer,
                self.matrix(s.hidden, q),
                self.vector(s.hidden, s.biases),
                self.norm(s.hidden, s.post_norms),
                s.residual_scale,
                self.norm(s.hidden, s.stream_norms),
                gate=self.matrix(q, s.hidden) if s.output_gates else None,
                gate_norm=self.norm(s.hidden) if s.output_gates else None,
                inner_norm=self.norm(q, s.inner_norms),
            ),
        ]

    def delta(self, layer: int, *sizes: int) -> Operation:
        s, cells = self.s, len(set(self.s.windows))
        key_heads, value_heads, key_dim, value_dim, length = sizes
        values = value_heads * value_dim
        channels = 2 * key_heads * key_dim + values
        return GatedDelta(
            layer,
            cells,
            cells + 1,
            *sizes,
            self.matrix(channels + values + 2 * value_heads, s.hidden, 1.5),
            self.vector(length * channels),
            -np.abs(self.vector(value_heads, mean=1.0)),
            self.vector(value_heads),
            Norm(self.vector(value_dim, mean=1.0), 1e-5),
            self.matrix(s.hidden, values),
            self.norm(s.hidden, s.pre_norms),
            residual_scale=s.residual_scale,
            tiled=s.tiled,
        )

    def space(self, layer: int, *sizes: int) -> Operation:
        s, cells, shape = self.s, len(set(self.s.windows)), RecurrentShape(*sizes)
        heads, wide = shape.value_heads, shape.channels + shape.values + shape.value_heads
        return StateSpace(
            layer,
            cells,
            cells + 1,
            *sizes,
            self.matrix(wide, s.hidden, 1.5),
            self.vector(shape.length * shape.channels),
            -np.abs(self.vector(heads, mean=1.0)),
            self.vector(heads),
            self.vector(heads, mean=1.0),
            self.matrix(s.hidden, shape.values),
            self.norm(s.hidden, s.pre_norms),
            Norm(self.vector(shape.values, mean=1.0), 1e-5) if s.pre_norms else None,
            shape.key_heads,
            self.vector(shape.channels, s.biases),
            self.vector(wide, s.biases),
            self.vector(s.hidden, s.biases),
            shortest_step=0.1,
            longest_step=1.5,
            residual_scale=s.residual_scale,
            norm_first=s.norm_first,
            gate_scale=s.multipliers[0],
            step_scale=s.multipliers[1],
            held=s.beside,
        )

    def gru(self, layer: int, width: int) -> Operation:
        s, cells = self.s, len(set(self.s.windows))
        return LinearGru(
            layer,
            cells,
            cells + 1,
            *(self.matrix(width, s.hidden, 1.5) for _ in range(3)),
            self.matrix(s.hidden, width),
            Norm(self.vector(width, mean=1.0), 1e-5),
            self.norm(s.hidden, s.pre_norms),
            self.norm(s.hidden, s.pre_norms),
            self.norm(s.hidden, s.pre_norms),
            self.norm(width, s.inner_norms),
            self.rng.uniform(0.0, 0.9, width).astype(np.float32) if s.biases else None,
            s.residual_scale,
        )

    def linear(self, layer: int, heads: int, features: int, value_dim: int) -> Operation:
        s, cells = self.s, len(set(self.s.windows))
        return LinearAttention(
            layer,
            cells,
            cells + 1,
            heads,
            features,
            value_dim,
            self.matrix(heads * (2 * features + value_dim), s.hidden, 1.5),
            self.matrix(s.hidden, heads * value_dim),
            self.norm(s.hidden, s.pre_norms),
            residual_scale=s.residual_scale,
        )

    def convolution(self, layer: int) -> Operation:
        s, width = self.s, self.s.wide or self.s.hidden
        inputs = (2 if s.wide else 3) * width
        return ShortConvolution(
            layer,
            len(set(s.windows)),
            s.convolution,
            self.matrix(inputs, s.hidden, 1.5),
            self.vector(s.convolution * width),
            self.matrix(s.hidden, width),
            self.norm(s.hidden, s.pre_norms),
            self.vector(inputs, s.biases),
            self.vector(width, s.biases),
            self.vector(s.hidden, s.biases),
            s.residual_scale,
            activated=s.wide > 0,
        )

    def feed_forward(self, layer: int) -> Operation:
        s = self.s
        width = 2 * s.inner if s.gated else s.inner
        return FeedForward(
            layer,
            self.matrix(width, s.hidden, s.weight_scale),
            self.matrix(s.hidden, s.inner),
            s.activation,
            self.norm(s.hidden, s.pre_norms),
            self.vector(width, s.biases),
            self.vector(s.hidden, s.biases),
            self.norm(s.hidden, s.post_norms),
            s.residual_scale,
            s.gated,
            self.norm(s.hidden, s.stream_norms),
            inner_norm=self.norm(s.inner, s.inner_norms),
            gate_scale=s.multipliers[0],
        )

    def mixture(self, layer: int) -> list[Operation]:
        s = self.s
        width = 2 if s.gated else 1
        route = Route(
            layer,
            self.matrix(s.experts, s.hidden, 2.0),
            s.top_k,
            s.normalise,
            self.norm(s.hidden, s.pre_norms),
            self.vector(s.experts, s.correction),
            self.vector(s.experts, s.biases),
            s.sigmoid,
            s.routed_scale,
        )
        experts = Experts(
            layer,
            s.top_k,
            [self.matrix(width * s.inner, s.hidden) for _ in range(s.experts)],
            [self.matrix(s.hidden, s.inner) for _ in range(s.experts)],
            s.activation,
            self.matrix(width * 24, s.hidden) if s.shared else None,
            self.matrix(s.hidden, 24) if s.shared else None,
            self.matrix(1, s.hidden) if s.shared_gate else None,
            self.norm(s.hidden, s.post_norms),
            s.residual_scale,
            gate_up_bias=self.vector(width * s.inner * s.experts, s.biases),
            down_bias=self.vector(s.hidden * s.experts, s.biases),
            gated=s.gated,
        )
        return [route, experts]


SHAPES: dict[str, Shape] = {
    "plain": Shape(),
    "bf16": Shape(weights="bf16", state="bfloat16"),
    "one head": Shape(heads=1, kv_heads=1, head_dim=64),
    "many query heads": Shape(heads=8, kv_heads=1),
    "no groups": Shape(heads=3, kv_heads=3, head_dim=20),
    "window": Shape(windows=(5, None), pages=32),
    "windows": Shape(windows=(20, 33), layers=3),
    "softcap": Shape(softcap=3.0, head_softcap=2.0, head_scale=0.7),
    "head norms": Shape(qk_norm="head", rotary_dim=8, rope_scale=1.3),
    "whole norms": Shape(qk_norm="whole", rotary_dim=0, pre_norms=False, post_norms=True),
    "biases": Shape(biases=True, head_bias=True, tied=True, embedding_scale=7.0),
    "gelu": Shape(activation="gelu_tanh", residual_scale=0.4, inner=37, hidden=44),
    "layer norms": Shape(
        norm_kind="layer",
        stream_norms=True,
        pre_norms=False,
        gated=False,
        activation="gelu",
        biases=True,
        positions=256,
        rotary_dim=0,
        hidden=44,
        inner=37,
    ),
    "gated gelu": Shape(activation="gelu", norm_kind="layer"),
    "multiplied gates": Shape(multipliers=(0.3, 1.0), inner=37),
    "multiplied gates in bf16": Shape(multipliers=(1.7, 1.0), weights="bf16", gated=False),
    "relu": Shape(activation="relu", gated=False),
    "experts": Shape(experts=5),
    "many experts": Shape(experts=17, top_k=6, normalise=False, post_norms=True),
    "shared expert": Shape(experts=4, shared=True, shared_gate=True),
    "experts by sigmoid": Shape(experts=7, sigmoid=True, correction=True, routed_scale=1.7),
    "shared without gate": Shape(experts=4, top_k=1, shared=True, activation="gelu_tanh"),
    "corrected choice": Shape(experts=7, top_k=3, correction=True),
    "growing queries": Shape(growth=0.3, rotary_dim=8, rope_scale=1.2),
    "weighted queries": Shape(query_weight=True, qk_norm="head", state="bfloat16"),
    "biased experts": Shape(experts=5, biases=True, activation="clamped_swiglu"),
    "experts that are not gated": Shape(
        experts=5, gated=False, shared=True, activation="relu", biases=True, sigmoid=True
    ),
    "clamped": Shape(activation="clamped_swiglu", inner=37, weight_scale=6.0),
    "sinks": Shape(sinks=True, heads=6, windows=(20, None), head_dim=64),
    "sinks in bf16": Shape(sinks=True, state="bfloat16", weights="bf16", softcap=3.0),
    "sinks in codes": Shape(
        sinks=True, state="k=int8,v=int4", page_tokens=5, pages=256, head_dim=32
    ),
    "sinks and chunks": Shape(sinks=True, dual_chunk=DualChunk(64, 96, 50)),
    "small pages": Shape(page_tokens=8, pages=128, windows=(11, None)),
    "odd pages": Shape(page_tokens=5, pages=256, state="bfloat16"),
    "large pages": Shape(page_tokens=64, pages=32, windows=(40, None), state="bfloat16"),
    "int8": Shape(state="int8", weights="bf16", head_dim=64),
    "int4": Shape(state="int4", heads=6, head_dim=48, rotary_dim=32),
    "mirrored": Shape(state="int4", heads=6, head_dim=48, mirrors=True),
    "int8 and int4": Shape(state="k=int8,v=int4", page_tokens=5, pages=256, windows=(20, None)),
    "int4 and int8": Shape(
        state="k=int4,v=int8", softcap=3.0, heads=3, kv_heads=3, head_dim=20, page_tokens=32
    ),
    "convolution": Shape(convolution=3),
    "activated convolution": Shape(convolution=3, wide=100, biases=True),
    "activated convolution in bf16": Shape(convolution=4, wide=37, weights="bf16", page_tokens=8),
    "long convolution": Shape(
        convolution=21, windows=(5, None), biases=True, page_tokens=5, pages=256, weights="bf16"
    ),
    "output gates": Shape(output_gates=True, qk_norm="head", rotary_dim=8),
    "inner norms": Shape(inner_norms=True, activation="relu_squared", inner=37),
    "inner norms behind gates": Shape(inner_norms=True, output_gates=True, gated=False),
    "chunks": Shape(dual_chunk=DualChunk(64, 96, 50), qk_norm="head", rotary_dim=8),
    "int8 chunks": Shape(
        dual_chunk=DualChunk(64, 150), state="k=int8,v=int4", page_tokens=5, pages=256, head_dim=32
    ),
    "chunks and windows": Shape(
        dual_chunk=DualChunk(128, 160, 100), state="bfloat16", windows=(70, None), rope_scale=1.1
    ),
}
"""Shapes that together have every field of every operation, of models whose rows see what came
before them."""

_ENCODER = replace(SHAPES["layer norms"], causal=False, positions=1400)
ENCODERS: dict[str, Shape] = {
    "encoder": _ENCODER,
    "bf16": replace(_ENCODER, weights="bf16", state="bfloat16"),
    "windows": replace(_ENCODER, windows=(5, None), layers=3),
    "wide windows": replace(_ENCODER, windows=(150, 33), heads=8, kv_heads=1, state="bfloat16"),
    "heads of 32": Shape(heads=3, kv_heads=3, head_dim=32, causal=False, state="bfloat16"),
    "odd pages": replace(_ENCODER, page_tokens=5, pages=400, windows=(None, 20)),
}
"""Shapes of models whose rows see their whole text."""

RECURRENT: dict[str, Shape] = {
    "delta rule": Shape(delta=(2, 4, 8, 12, 4)),
    "one head": Shape(
        delta=(1, 1, 20, 7, 2), windows=(5, None), page_tokens=5, pages=256, residual_scale=0.4
    ),
    "bf16": Shape(delta=(2, 6, 16, 16, 3), weights="bf16", state="bfloat16", page_tokens=8),
    "value heads that take turns": Shape(delta=(2, 6, 8, 8, 4), tiled=True),
    "state space": Shape(space=(2, 4, 8, 12, 4)),
    "state space with biases": Shape(
        space=(1, 3, 20, 7, 2), biases=True, windows=(5, None), page_tokens=5, pages=256
    ),
    "state space beside attention": Shape(
        space=(2, 4, 8, 12, 4), beside=True, multipliers=(0.6, 1.7), norm_first=True
    ),
    "state space beside attention in a window": Shape(
        space=(1, 2, 16, 8, 3),
        beside=True,
        multipliers=(1.0, 0.3),
        windows=(5, None),
        residual_scale=0.4,
        page_tokens=8,
        state="bfloat16",
    ),
    "state space without norms": Shape(
        space=(1, 2, 16, 8, 4), pre_norms=False, weights="bf16", state="bfloat16"
    ),
    "linear attention": Shape(linear=(3, 4, 10)),
    "linear attention, many features": Shape(
        linear=(2, 16, 24), windows=(5, None), page_tokens=5, pages=256, residual_scale=0.4
    ),
    "linear attention in bf16": Shape(
        linear=(4, 3, 7), weights="bf16", state="bfloat16", page_tokens=8
    ),
    "linear recurrence": Shape(gru=48, second_norms=True, inner_norms=True, biases=True),
    "wide linear recurrence": Shape(
        gru=300, windows=(5, None), page_tokens=5, pages=256, residual_scale=0.4
    ),
    "linear recurrence in bf16": Shape(
        gru=37, pre_norms=False, weights="bf16", state="bfloat16", page_tokens=8
    ),
}
"""Shapes of models with a state that every token changes."""
