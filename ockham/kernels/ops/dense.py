"""What is multiplied with a pooled hidden state, outside of any step: heads of classifiers, and the
projections of models of embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """y = norm(act(weight(x) + bias)) of a few rows x (n, in) -> (n, out), fp32.

    The activation and the norm are computed in double and rounded once, so that a row's bits depend
    on that row alone wherever those of the product do."""

    weight: Linear  # (out, in)
    bias: Floats | None = None
    activation: str = "identity"
    norm: Norm | None = None

    def __call__(self, x: Floats) -> Floats:
        y = self.weight.matmul(np.ascontiguousarray(x, np.float32))
        if self.bias is not None:
            y = y + self.bias
        exact = POOLED_ACTIVATIONS[self.activation](y.astype(np.float64))
        if self.norm is not None:
            exact = _normed(exact, self.norm)
        return exact.astype(np.float32)


def normed(x: Floats, norm: Norm | None) -> Floats:
    """norm(x) of a few rows, or x where there is none, rounded once."""
    return x if norm is None else _normed(x.astype(np.float64), norm).astype(np.float32)


def _normed(x: Doubles, norm: Norm) -> Doubles:
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    y: Doubles = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + norm.eps) * norm.weight
    return y if norm.bias is None else y + norm.bias


def _erf(x: Doubles) -> Doubles:
    flat = [math.erf(value) for value in x.ravel().tolist()]
    return np.array(flat, np.float64).reshape(x.shape)


def gelu(x: Doubles) -> Doubles:
    """x / 2 * (1 + erf(x / sqrt 2))"""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: Doubles) -> Doubles:
    bend: Doubles = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + bend)


def _sigmoid(x: Doubles) -> Doubles:
    # Of a half, so that nothing overflows.
    bend: Doubles = np.tanh(0.5 * x)
    return 0.5 * (1 + bend)


POOLED_ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
}
"""The activations that may follow a product of pooled hidden states."""
