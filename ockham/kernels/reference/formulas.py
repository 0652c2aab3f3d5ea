"""The row-wise formulas of the reference backend, in plain NumPy and fp32."""

from __future__ import annotations

import math

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.kernels.ops import Norm, Rope
from ockham.kernels.ops.dense import gelu

_ONE, _HALF = np.float32(1.0), np.float32(0.5)
_GELU_SLOPE = np.float32(math.sqrt(2.0 / math.pi))
_MOST_SWIGLU, _SWIGLU_SLOPE = np.float32(7.0), np.float32(1.702)


def normalise(x: Floats, norm: Norm | None) -> Floats:
    """The norm over the last axis of x (..., D); x itself where `norm` is None."""
    if norm is None:
        return x
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    mean_square: Floats = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    normed: Floats = x / np.sqrt(mean_square + np.float32(norm.eps)) * norm.weight
    return normalise(normed if norm.bias is None else normed + norm.bias, norm.then)


def rotation(rope: Rope, positions: Ints) -> tuple[Floats, Floats]:
    """Cosines and sines of every row's angles, times the rope's scale: each (R, rotary_dim / 2)."""
    if rope.dual_chunk is not None:
        positions = positions % np.int32(rope.dual_chunk.chunk)
    angles = positions.astype(np.float32)[:, None] * rope.inverse_frequencies
    scale = np.float32(rope.scale)
    return np.cos(angles) * scale, np.sin(angles) * scale


def rotate(heads: Floats, cos: Floats, sin: Floats) -> None:
    """Rotate heads (R, heads, E) in place; elements from rotary_dim on stay as they are."""
    half = cos.shape[1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = heads[..., :half], heads[..., half : 2 * half]
    rotated = first * cos - second * sin
    heads[..., half : 2 * half] = second * cos + first * sin
    heads[..., :half] = rotated


def grown(rope: Rope, positions: Ints) -> Floats:
    """By what rotated queries at these positions are multiplied: (R,)."""
    steps = np.log(1.0 + positions // rope.period)
    grown: Floats = (1.0 + rope.growth * steps).astype(np.float32)
    return grown


def softcap(scores: Floats, cap: float | None) -> Floats:
    """cap * tanh(scores / cap), in place; nothing where `cap` is None."""
    if cap is not None:
        scores /= np.float32(cap)
        np.tanh(scores, out=scores)
        scores *= np.float32(cap)
    return scores


def gated(gate_up: Floats, activation: str) -> Floats:
    """act(gate) * up of gate_up (R, 2 * I), the gate in the first half: (R, I)."""
    half = gate_up.shape[1] // 2
    gate, up = gate_up[:, :half], gate_up[:, half:]
    if activation == "clamped_swiglu":
        up = np.clip(up, -_MOST_SWIGLU, _MOST_SWIGLU) + _ONE
    return _ACTIVATIONS[activation](gate) * up


def activated(x: Floats, activation: str) -> Floats:
    return _ACTIVATIONS[activation](x)


def sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(large) is inf, and 1 / inf the right 0
        return _ONE / (_ONE + np.exp(-x))


def _silu(x: Floats) -> Floats:
    return x * sigmoid(x)


def _gelu_tanh(x: Floats) -> Floats:
    inner: Floats = _GELU_SLOPE * (x + np.float32(0.044715) * x * x * x)
    bend: Floats = np.tanh(inner)
    return _HALF * x * (_ONE + bend)


def _gelu(x: Floats) -> Floats:
    return gelu(x.astype(np.float64)).astype(np.float32)


def _relu(x: Floats) -> Floats:
    positive: Floats = np.maximum(x, np.float32(0))
    return positive


def _relu_squared(x: Floats) -> Floats:
    positive = _relu(x)
    return positive * positive


def _clamped_swish(x: Floats) -> Floats:
    least: Floats = np.minimum(x, _MOST_SWIGLU)
    return least * sigmoid(least * _SWIGLU_SLOPE)


_ACTIVATIONS = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": _relu,
    "clamped_swiglu": _clamped_swish,
    "relu_squared": _relu_squared,
}
