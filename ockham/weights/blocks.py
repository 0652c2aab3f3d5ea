"""What the formats share of floating-point values."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats

WIDENED_VALUES = 1 << 19
"""Weights widened to fp32 at a time (2 MiB): they stay in the second-level cache until used."""

_scratch = threading.local()

_BITS: dict[np.dtype[np.generic], tuple[type, type, int]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, np.uint16, 0x7F80),
    np.dtype(np.float16): (np.int16, np.uint16, 0x7C00),
    np.dtype(np.float32): (np.int32, np.uint32, 0x7F800000),
}
"""Float dtype -> its signed and unsigned views, and the bits of +infinity."""


def all_finite(values: Array) -> bool:
    """Whether an array of bfloat16, float16, float32 or float64 holds no NaN and no infinity.

    The bits of a float order like an integer within one sign, so that two maxima say it: several
    times faster than `np.isfinite`, which counts when gigabytes are loaded.
    """
    if not values.size:
        return True
    if values.dtype not in _BITS:
        return bool(np.isfinite(values).all())
    signed, unsigned, infinity = _BITS[values.dtype]
    sign = np.iinfo(signed).max + 1
    return bool(
        values.view(signed).max() < infinity and values.view(unsigned).max() < infinity + sign
    )


def round_to_bfloat16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """x rounded to the nearest bfloat16 (ties to even), held as float32."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def product_in_bfloat16(weight: Array, x: Floats) -> Floats:
    """x (M, K) times the transposed rows of bfloat16 (N, K): (M, N). Inputs are rounded to
    bfloat16, products and sums are fp32.

    A block of rows is widened at a time, so that the matrix never exists in fp32.
    """
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


def _widening_scratch(values: int) -> Floats:
    """A float32 buffer of this thread, at least `values` long, reused from call to call."""
    buffer: Floats | None = getattr(_scratch, "buffer", None)
    if buffer is None or len(buffer) < values:
        buffer = _scratch.buffer = np.empty(values, np.float32)
    return buffer
