"""Weights in single precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.registry import register
from ockham.core.seams import Array, Floats
from ockham.weights.blocks import fill


class Fp32Linear:
    """`arrays["weight"]`: float32 (out_features, in_features)."""

    format = "fp32"

    def __init__(self, weight: Floats) -> None:
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.arrays: dict[str, Array] = {"weight": weight}

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def matmul(self, x: Floats) -> Floats:
        product: Floats = x @ self.weight.T
        return product

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        return self.weight[ids]


@register("format", "fp32", exact=True)
class Fp32:
    """Weights, activations and accumulation in fp32: 4 bytes a value, the oracle's precision."""

    name: ClassVar[str] = "fp32"
    activations: ClassVar[str] = "float32"

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        return 4 * out_features * in_features

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Fp32Linear:
        weight = np.empty((out_features, in_features), np.float32)
        fill(weight, blocks)
        return Fp32Linear(weight)
