"""Weights in bfloat16."""

from __future__ import annotations

from typing import ClassVar

import ml_dtypes
import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Values
from ockham.weights.blocks import all_finite, product_in_bfloat16
from ockham.weights.by_rows import ByRows


@register("format", "bf16", exact=True)
class Bf16(ByRows):
    """Weights in bf16 (2 bytes a value), inputs rounded to bf16 at each product, fp32 sums.

    The rounding of the inputs (nearest, ties to even) is part of the format's definition: it is
    what bf16 matrix units read. Sums, and everything between products, stay fp32. `weight`: (rows,
    K)."""

    name: ClassVar[str] = "bf16"
    arithmetic: ClassVar[Arithmetic] = "bf16"
    dtype: ClassVar[str | None] = "bfloat16"
    activations: ClassVar[str] = "bfloat16"

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        return {"weight": Field("bfloat16", (in_features,), 16)}

    def encode(self, rows: Array) -> Values:
        with np.errstate(over="ignore"):
            weight = rows.astype(ml_dtypes.bfloat16, copy=False)
        if rows.dtype.itemsize > weight.dtype.itemsize and not all_finite(weight):
            raise ModelError("there is a value that bfloat16 cannot hold")
        return {"weight": weight}

    def matmul(self, values: Values, x: Floats) -> Floats:
        """See `product_in_bfloat16`."""
        return product_in_bfloat16(values["weight"], x)

    def decode(self, values: Values, in_features: int) -> Floats:
        return values["weight"].astype(np.float32)
