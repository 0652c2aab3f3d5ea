"""The way back from the loss through a decoder, in NumPy and fp32: what `LayerGradients` holds.

Each window of the text goes forward alone, and what enters each branch is kept; then layers are
gone through from the last to the first, each computed once more and differentiated. Everything that
the reference backend computes is differentiated, the router's weights too (not its choice, which is
a step)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ockham.core.arrays import Bools, Floats, Ints
from ockham.core.errors import ConfigError
from ockham.core.seams import LayerGradients, Linear, Role
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Embed,
    Experts,
    FeedForward,
    Head,
    Norm,
    Operation,
    Program,
    Rope,
    Route,
)
from ockham.kernels.reference.formulas import normalise, rotate, rotation, sigmoid
from ockham.model.packed.layout import key_of
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, VectorPart, Weights
from ockham.model.rewriting.reading import Readable, plain_packer

Op = TypeVar("Op", bound=Operation)


def read_back(
    source: Readable, description: ModelDescription, windows: Ints
) -> Iterator[LayerGradients]:
    """Read windows of token ids (count, length) and go back from the mean negative log-likelihood
    of their next tokens. Raises ConfigError for a model with operations that have no derivative
    here: another activation than SiLU, or dual chunk attention."""
    weights = _Naming(source.load(plain_packer()))
    program = compile_program(description, weights, description.max_position_embeddings)
    for op in program.ops:
        if getattr(op, "activation", "silu") != "silu":
            raise ConfigError(
                "gradients are computed for models whose activation is SiLU; this one has "
                f"{op.activation}."  # type: ignore[attr-defined]
            )
        if any(
            getattr(op, field, None) is not None
            for field in ("post_norm", "stream_norm", "inner_norm")
        ):
            raise ConfigError("gradients are not computed through norms in or behind a branch.")
        if isinstance(op, AttentionInput) and op.changes_rotated_queries:
            raise ConfigError(
                "gradients are not computed through queries that change after their rotation."
            )
        if getattr(op, "sinks", None) is not None:
            raise ConfigError("gradients are not computed through attention with sinks.")
        if isinstance(op, Experts) and (op.gate_up_bias is not None or op.down_bias is not None):
            raise ConfigError("gradients are not computed through experts with biases.")
    if description.without_attention:
        raise ConfigError("gradients are not computed where layers have no attention.")
    if description.dual_chunk:
        raise ConfigError("gradients are not computed through dual chunk attention.")
    return _Way(program, weights.names, windows).back()


class _Naming:
    """Weights that remember the name of each matrix."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.names: dict[int, str] = {}
        """By the identity of the matrix, which the program keeps alive."""

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        linear = self._weights.linear(parts, role)
        self.names[id(linear)] = key_of(parts)
        return linear

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return self._weights.vector(parts, offset)


class _Way:
    def __init__(self, program: Program, names: Mapping[int, str], windows: Ints) -> None:
        self._names, self._windows = names, windows
        ops = program.ops
        self._embed, self._head = _of(ops, Embed)[0], _of(ops, Head)[0]
        outputs, attends = _of(ops, AttentionOutput), _of(ops, Attend)
        self._attentions = [
            _Attention(each, attends[n], outputs[n], windows.shape[1])
            for n, each in enumerate(_of(ops, AttentionInput))
        ]
        routes = {each.layer: each for each in _of(ops, Route)}
        self._branches: list[_FeedForward | _Mixture] = [
            _Mixture(routes[op.layer], op) if isinstance(op, Experts) else _FeedForward(op)
            for op in ops
            if isinstance(op, FeedForward | Experts)
        ]

    def back(self) -> Iterator[LayerGradients]:
        kept: list[list[tuple[Floats, Floats]]] = [[] for _ in self._attentions]
        grads = []
        count = self._windows.size - len(self._windows)
        for ids in self._windows:
            x = self._embed.table.rows(ids) * np.float32(self._embed.scale)
            for layer, (attention, branch) in enumerate(
                zip(self._attentions, self._branches, strict=True)
            ):
                middle = attention.forward(x)
                kept[layer].append((x, middle))
                x = branch.forward(middle)
            grads.append(_head_gradient(self._head, x, ids, count))
        for layer in reversed(range(len(kept))):
            inner: dict[str, list[Floats]] = {}
            outer: dict[str, list[Floats]] = {}
            for number, (x, middle) in enumerate(kept[layer]):
                passed: Passed = []
                dx = self._branches[layer].backward(middle, grads[number], passed)
                grads[number] = self._attentions[layer].backward(x, dx)
                for down, a, g in passed:
                    name = self._names[id(down)]
                    inner.setdefault(name, []).append(a)
                    outer.setdefault(name, []).append(g)
            kept[layer] = []
            yield LayerGradients(
                layer,
                {name: np.concatenate(parts) for name, parts in inner.items()},
                {name: np.concatenate(parts) for name, parts in outer.items()},
            )


Passed = list[tuple[Linear, Floats, Floats]]
"""(matrix, its inputs, the gradients at its outputs) of one window."""


def _of(ops: Sequence[Operation], kind: type[Op]) -> list[Op]:
    return [op for op in ops if isinstance(op, kind)]


def matrix(linear: Linear) -> Floats:
    """All rows of a matrix, in fp32."""
    return linear.rows(np.arange(linear.out_features, dtype=np.int32))


def norm_back(x: Floats, norm: Norm | None, d: Floats) -> Floats:
    """The gradient at x (..., D) of norm(x), whose own is d."""
    if norm is None:
        return d
    inverse = 1 / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(norm.eps))
    scaled = d * norm.weight
    mean = (scaled * x).mean(axis=-1, keepdims=True)
    grad: Floats = inverse * (scaled - x * mean * inverse**2)
    return grad


def _gate_back(gate_up: Floats, d: Floats) -> tuple[Floats, Floats]:
    """SiLU(gate) * up (rows, I), and the gradient at gate_up (rows, 2 I) of it, whose own is d."""
    gate, up = np.split(gate_up, 2, axis=1)
    soft = sigmoid(gate)
    act = gate * soft
    slope = soft * (1 + gate * (1 - soft))
    return act * up, np.concatenate([d * up * slope, d * act], axis=1)


def _gated(gate_up: Floats) -> Floats:
    gate, up = np.split(gate_up, 2, axis=1)
    product: Floats = gate * sigmoid(gate) * up
    return product


def _head_gradient(op: Head, x: Floats, ids: Ints, count: int) -> Floats:
    """At the stream x (rows, D) that enters the head, of the sum of negative log-likelihoods of the
    next tokens over `count`."""
    h = normalise(x[:-1], op.norm)
    raw = h @ matrix(op.out).T * np.float32(op.scale)
    logits = raw if op.softcap is None else np.float32(op.softcap) * np.tanh(raw / op.softcap)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    d = shifted / shifted.sum(axis=1, keepdims=True)
    d[np.arange(len(d)), ids[1:]] -= 1
    d /= np.float32(count)
    if op.softcap is not None:
        d *= 1 - np.square(logits / np.float32(op.softcap))
    dh = d * np.float32(op.scale) @ matrix(op.out)
    grad = np.zeros_like(x)
    grad[:-1] = norm_back(x[:-1], op.norm, dh)
    return grad


class _FeedForward:
    def __init__(self, op: FeedForward) -> None:
        if not op.gated:
            raise ConfigError("gradients are computed for feed-forwards that are gated.")
        self.op = op

    def forward(self, x: Floats) -> Floats:
        return _base(x, self.op.shortcut) + self._branch(x)[1]

    def _branch(self, x: Floats) -> tuple[Floats, Floats]:
        op = self.op
        gate_up = _plus(op.gate_up.matmul(normalise(x, op.norm)), op.gate_up_bias)
        branch = _plus(op.down.matmul(_gated(gate_up)), op.down_bias)
        return gate_up, branch * np.float32(op.residual_scale)

    def backward(self, x: Floats, d: Floats, passed: Passed) -> Floats:
        op, down = self.op, matrix(self.op.down)
        gate_up, _ = self._branch(x)
        g: Floats = d * np.float32(op.residual_scale)
        d_inner: Floats = g @ down
        a, d_gate_up = _gate_back(gate_up, d_inner)
        passed.append((op.down, a, g))
        dh = d_gate_up @ matrix(op.gate_up)
        return _base_back(d, op.shortcut) + norm_back(x, op.norm, dh)


class _Mixture:
    def __init__(self, route: Route, op: Experts) -> None:
        self.route, self.op = route, op

    def forward(self, x: Floats) -> Floats:
        h = normalise(x, self.route.norm)
        chosen, weights, _ = self._routed(h)
        branch = np.zeros_like(x)
        for expert in np.unique(chosen).tolist():
            rows, places = np.nonzero(chosen == expert)
            inner = _gated(self.op.gate_up[expert].matmul(h[rows]))
            branch[rows] += weights[rows, places, None] * self.op.down[expert].matmul(inner)
        branch += self._shared(h)
        return _base(x, self.op.shortcut) + branch * np.float32(self.op.residual_scale)

    def _routed(self, h: Floats) -> tuple[Ints, Floats, Floats]:
        """The experts chosen (rows, k), their weights, and the probabilities of all."""
        scores = self.route.router.matmul(h)
        probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        chosen: Ints = order[:, : self.route.top_k].astype(np.int32)
        weights = np.take_along_axis(probabilities, chosen, axis=1)
        if self.route.normalise:
            weights = weights / weights.sum(axis=1, keepdims=True)
        return chosen, weights, probabilities

    def _shared(self, h: Floats) -> Floats:
        op = self.op
        if op.shared_gate_up is None or op.shared_down is None:
            return np.zeros_like(h)
        shared = op.shared_down.matmul(_gated(op.shared_gate_up.matmul(h)))
        if op.shared_gate is not None:
            shared = shared * sigmoid(op.shared_gate.matmul(h))
        return shared

    def backward(self, x: Floats, d: Floats, passed: Passed) -> Floats:
        op, h = self.op, normalise(x, self.route.norm)
        chosen, weights, probabilities = self._routed(h)
        g: Floats = d * np.float32(op.residual_scale)
        dh, d_weights = np.zeros_like(h), np.zeros_like(weights)
        for expert in np.unique(chosen).tolist():
            rows, places = np.nonzero(chosen == expert)
            gate_up = op.gate_up[expert].matmul(h[rows])
            down = matrix(op.down[expert])
            own: Floats = g[rows] * weights[rows, places, None]
            d_inner: Floats = own @ down
            a, d_gate_up = _gate_back(gate_up, d_inner)
            passed.append((op.down[expert], a, own))
            dh[rows] += d_gate_up @ matrix(op.gate_up[expert])
            d_weights[rows, places] = (g[rows] * (a @ down.T)).sum(axis=1)
        dh += self._router_back(chosen, weights, probabilities, d_weights)
        dh += self._shared_back(h, g)
        return _base_back(d, op.shortcut) + norm_back(x, self.route.norm, dh)

    def _router_back(
        self, chosen: Ints, weights: Floats, probabilities: Floats, d: Floats
    ) -> Floats:
        if self.route.normalise:
            total = np.take_along_axis(probabilities, chosen, axis=1).sum(axis=1, keepdims=True)
            d = (d - (d * weights).sum(axis=1, keepdims=True)) / total
        d_all = np.zeros_like(probabilities)
        np.put_along_axis(d_all, chosen, d, axis=1)
        mean = (d_all * probabilities).sum(axis=1, keepdims=True)
        back: Floats = probabilities * (d_all - mean) @ matrix(self.route.router)
        return back

    def _shared_back(self, h: Floats, g: Floats) -> Floats:
        op = self.op
        if op.shared_gate_up is None or op.shared_down is None:
            return np.zeros_like(h)
        gate_up, down = op.shared_gate_up.matmul(h), matrix(op.shared_down)
        weight: Floats = np.ones((len(h), 1), np.float32)
        dh = np.zeros_like(h)
        if op.shared_gate is not None:
            weight = sigmoid(op.shared_gate.matmul(h))
            d_weight = (g * (_gated(gate_up) @ down.T)).sum(axis=1, keepdims=True)
            dh += d_weight * weight * (1 - weight) @ matrix(op.shared_gate)
        own: Floats = g * weight
        d_inner: Floats = own @ down
        _, d_gate_up = _gate_back(gate_up, d_inner)
        back: Floats = dh + d_gate_up @ matrix(op.shared_gate_up)
        return back


class _Attention:
    """All rows of a window at once: each sees itself and those before it, or its window of them."""

    def __init__(self, op: AttentionInput, attend: Attend, output: AttentionOutput, length: int):
        self.op, self.attend, self.output = op, attend, output
        rows = np.arange(length)
        behind = rows[:, None] - rows
        self._seen: Bools = behind >= 0
        if attend.window is not None:
            self._seen &= behind < attend.window
        self._rotation = None if op.rope is None else _angles(op.rope, length)

    def forward(self, x: Floats) -> Floats:
        q, k, v, _ = self._qkv(x)
        mixed = np.matmul(self._probabilities(q, k)[0], v)  # (heads, rows, E)
        branch = _plus(self.output.out.matmul(_joined(mixed)), self.output.bias)
        return _base(x, self.output.shortcut) + branch * np.float32(self.output.residual_scale)

    def _qkv(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Rotated queries, keys and values (heads, rows, E) each, and q, k, v as projected."""
        op, rows = self.op, len(x)
        raw = _plus(op.qkv.matmul(normalise(x, op.norm)), op.bias)
        q, k, v = self._cut(raw)
        if op.norm_whole:
            q, k = normalise(q, op.q_norm), normalise(k, op.k_norm)
        q, k = q.reshape(rows, op.heads, -1), k.reshape(rows, op.kv_heads, -1)
        if not op.norm_whole:
            q, k = normalise(q, op.q_norm), normalise(k, op.k_norm)
        q, k = np.array(q), np.array(k)
        if self._rotation is not None:
            rotate(q, *self._rotation)
            rotate(k, *self._rotation)
        repeats = op.heads // op.kv_heads
        k, v = (
            np.repeat(each.reshape(rows, op.kv_heads, -1), repeats, axis=1).transpose(1, 0, 2)
            for each in (k, v)
        )
        return q.transpose(1, 0, 2), k, v, raw

    def _cut(self, raw: Floats) -> list[Floats]:
        first = self.op.heads * self.op.head_dim
        return np.split(raw, [first, first + self.op.kv_heads * self.op.head_dim], axis=1)

    def _probabilities(self, q: Floats, k: Floats) -> tuple[Floats, Floats | None]:
        """(heads, rows, rows), and the slope of the soft cap where there is one."""
        scores = np.matmul(q, k.transpose(0, 2, 1)) * np.float32(self.attend.scale)
        slope = None
        if self.attend.softcap is not None:
            bent = np.tanh(scores / np.float32(self.attend.softcap))
            scores, slope = bent * np.float32(self.attend.softcap), 1 - np.square(bent)
        scores = np.where(self._seen, scores, np.float32(-np.inf))
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        return scores / scores.sum(axis=2, keepdims=True), slope

    def backward(self, x: Floats, d: Floats) -> Floats:
        op, out, rows = self.op, matrix(self.output.out), len(x)
        q, k, v, raw = self._qkv(x)
        p, slope = self._probabilities(q, k)
        da = d * np.float32(self.output.residual_scale) @ out
        da = da.reshape(rows, op.heads, -1).transpose(1, 0, 2)
        dp = np.matmul(da, v.transpose(0, 2, 1))
        ds = p * (dp - (dp * p).sum(axis=2, keepdims=True)) * np.float32(self.attend.scale)
        ds = ds if slope is None else ds * slope
        dv, dq = np.matmul(p.transpose(0, 2, 1), da), np.matmul(ds, k)
        dk = np.matmul(ds.transpose(0, 2, 1), q)
        by_row = [self._by_group(each).transpose(1, 0, 2) for each in (dk, dv)]
        grads = [np.array(dq.transpose(1, 0, 2)), np.array(by_row[0])]
        q_raw, k_raw, _ = self._cut(raw)
        back = []
        for grad, own, norm in zip(grads, (q_raw, k_raw), (op.q_norm, op.k_norm), strict=True):
            if self._rotation is not None:
                cos, sin = self._rotation
                rotate(grad, cos, -sin)
            shape = own.shape if op.norm_whole else grad.shape
            back.append(norm_back(own.reshape(shape), norm, grad.reshape(shape)).reshape(rows, -1))
        d_raw = np.concatenate([*back, by_row[1].reshape(rows, -1)], axis=1)
        dh = d_raw @ matrix(op.qkv)
        return _base_back(d, self.output.shortcut) + norm_back(x, op.norm, dh)

    def _by_group(self, each: Floats) -> Floats:
        """The sum over the heads that share a key or value."""
        summed: Floats = each.reshape(self.op.kv_heads, -1, *each.shape[1:]).sum(axis=1)
        return summed


def _angles(rope: Rope, length: int) -> tuple[Floats, Floats]:
    return rotation(rope, np.arange(length, dtype=np.int32))


def _joined(heads: Floats) -> Floats:
    """(heads, rows, E) as (rows, heads * E)."""
    return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(heads.shape[1], -1)


def _plus(y: Floats, bias: Floats | None) -> Floats:
    return y if bias is None else y + bias


def _base(x: Floats, shortcut: Linear | None) -> Floats:
    return x if shortcut is None else shortcut.matmul(x)


def _base_back(d: Floats, shortcut: Linear | None) -> Floats:
    return d if shortcut is None else d @ matrix(shortcut)
