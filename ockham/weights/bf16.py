"""Weights in bfloat16."""

from __future__ import annotations

import threading
from typing import ClassVar

import ml_dtypes
import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Values
from ockham.weights.blocks import all_finite, round_to_bfloat16
from ockham.weights.by_rows import ByRows

WIDENED_VALUES = 1 << 19
"""Weights widened to fp32 at a time (2 MiB): they stay in the second-level cache until used."""

_scratch = threading.local()


def _widening_scratch(values: int) -> Floats:
    """A float32 buffer of this thread, at least `values` long, reused from call to call."""
    buffer: Floats | None = getattr(_scratch, "buffer", None)
    if buffer is None or len(buffer) < values:
        buffer = _scratch.buffer = np.empty(values, np.float32)
    return buffer


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
        """The inputs are rounded to bfloat16, products and sums are fp32.

        A block of rows is widened at a time, so that the matrix never exists in fp32.
        """
        weight = values["weight"]
        x = round_to_bfloat16(x)
        product = np.empty((len(x), len(weight)), np.float32)
        step = min(max(1, WIDENED_VALUES // weight.shape[1]), len(weight))
        scratch = _widening_scratch(step * weight.shape[1])
        for start in range(0, len(weight), step):
            block = weight[start : start + step]
            wide = scratch[: block.size].reshape(block.shape)
            wide[...] = block
            np.matmul(x, wide.T, out=product[:, start : start + step])
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        return values["weight"].astype(np.float32)
