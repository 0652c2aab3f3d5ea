"""Weights in single precision."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Values
from ockham.weights.blocks import all_finite
from ockham.weights.by_rows import ByRows


@register("format", "fp32", exact=True)
class Fp32(ByRows):
    """Weights, activations and accumulation in fp32: 4 bytes a value, the oracle's precision.

    `weight`: (rows, K).
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "fp32"
    arithmetic: ClassVar[Arithmetic] = "fp32"
    dtype: ClassVar[str | None] = "float32"
    activations: ClassVar[str] = "float32"

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        return {"weight": Field("float32", (in_features,), 32)}

    def encode(self, rows: Array) -> Values:
        with np.errstate(over="ignore"):
            weight = rows.astype(np.float32, copy=False)
        if rows.dtype.itemsize > weight.dtype.itemsize and not all_finite(weight):
            raise ModelError("there is a value that float32 cannot hold")
        return {"weight": weight}

    def matmul(self, values: Values, x: Floats) -> Floats:
        weight: Floats = values["weight"].view(np.float32)
        product: Floats = x @ weight.T
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        return values["weight"].astype(np.float32)
