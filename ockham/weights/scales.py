"""Scales of groups of weights around a fixed zero, searched for the least squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError

DIVISORS: dict[int, tuple[float, ...]] = {
    8: (8.0, 7.0, 7.4, 7.7, 8.3, 8.7, 9.2, 10.0),
    16: (16.0, 15.0, 15.4, 15.7, 16.3, 16.7, 17.2, 18.0, 19.0),
}
"""By the code that means zero: a group's scale is -extreme / d for the best of these d."""

MOST_SCALE = 65504.0
"""The largest fp16."""


def choose_scales(
    values: Floats, middle: int = 8
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Codes (..., group) below 2 * middle and scales (...,) of groups (..., group) of weights:
    w = (code - middle) * scale.

    `extreme` is a group's weight of largest magnitude, the first of equals. Of the scales
    -extreme / d rounded to fp16 (d = middle puts it exactly at code 0, less leaves room, more clips
    it) that with the smallest sum of squared errors is taken, the first of equals. The order of
    that sum is fixed (16 lanes, then halves of them), so that the compiled packers choose the same.
    """
    index = np.abs(values).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(values, index, axis=-1)
    best_codes = np.zeros(values.shape, np.float32)
    best_scale = np.zeros(extreme.shape, np.float16)
    best_error = np.full(extreme.shape, np.inf, np.float32)
    for divisor in DIVISORS[middle]:
        scale = (extreme / np.float32(-divisor)).astype(np.float16)
        wide = scale.astype(np.float32)
        inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
        codes = np.clip(np.rint(values * inverse), -middle, middle - 1)
        squares = np.square(values - codes * wide)
        lanes = np.zeros((*values.shape[:-1], 16), np.float32)
        for start in range(0, values.shape[-1], 16):
            lanes = lanes + squares[..., start : start + 16]
        for half in (8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        better = lanes < best_error
        best_error = np.where(better, lanes, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better, codes, best_codes)
    return (best_codes + middle).astype(np.uint8), best_scale[..., 0]


def check_scales(rows: Floats, least_divisor: float) -> None:
    """Raise ModelError for weights so large that fp16 cannot hold the scale of their group."""
    if np.abs(rows).max() >= MOST_SCALE * least_divisor:
        raise ModelError("a weight is too large for the fp16 scale of its group.")
