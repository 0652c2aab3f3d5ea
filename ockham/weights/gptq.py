"""4-bit codes chosen so that a product's outputs err least on the inputs that it is given.

GPTQ (Frantar et al., arXiv:2210.17323): inputs are rounded one after another, and what rounding one
of them does to the outputs is made good by the weights of those that are still to come, as far as
the second moments of the inputs let it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats
from ockham.core.errors import ModelError

MIDDLE = 8
"""The code of zero."""

MOST = 65504.0
"""Weights from here on are refused: what is made good for others must still find a scale."""

Bytes = npt.NDArray[np.uint8]

Round = Callable[[Floats], tuple[Bytes, Floats]]
"""Codes of the weights (N,) of one input, and the values that they stand for."""

Begin = Callable[[int, Floats, Floats], Round]
"""What rounds the weights of a group of inputs: from its number, its weights (group, N) as they
are by then, and how much errors of each input count (group,)."""

DAMPING = 0.01
"""Share of the mean diagonal that is added to it, as in the paper: few inputs determine nothing."""

DIVISORS = (8.0, 7.0, 7.35, 7.7, 8.35, 8.7, 9.2, 9.8, 10.5, 11.5, 12.5)
"""A group's scale is -extreme / d for the best of these d, as in `scales.choose_scales`."""


def calibrated_codes(
    rows: Floats, moments: Floats, group: int
) -> tuple[Bytes, npt.NDArray[np.float16]]:
    """Codes (N, K), of which MIDDLE stands for zero, and scales (N, K / group), for inputs x whose
    second moments are the sum of x^T x: (K, K).

    Inputs that were never anything but zero are rounded as they are. Raises ModelError for moments
    that are not finite, and for weights whose scale fp16 cannot hold.
    """
    if np.abs(rows).max() >= MOST:
        raise ModelError("a weight is too large for the fp16 scale of its group.")
    scales = np.empty((rows.shape[1] // group, len(rows)), np.float16)

    def begin(number: int, block: Floats, importance: Floats) -> Round:
        scales[number] = _best_scales(block, importance)
        scale = scales[number].astype(np.float32)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)

        def rounded(weights: Floats) -> tuple[Bytes, Floats]:
            code = np.clip(np.rint(weights * inverse), -8, 7)
            return (code + MIDDLE).astype(np.uint8), code * scale

        return rounded

    return compensated_codes(rows, moments, group, begin), scales.T


def compensated_codes(rows: Floats, moments: Floats, group: int, begin: Begin) -> Bytes:
    """Codes (N, K), where the weights of one input after another are rounded, and those of the
    inputs behind it make good what that does to the outputs. Raises ModelError for moments that
    are not finite."""
    outputs, inputs = rows.shape
    if not np.isfinite(moments).all():
        raise ModelError("the inputs of this product are not finite on the calibration text.")
    factor = factor_of_inverse(moments)
    weight = np.ascontiguousarray(rows.T, np.float32)  # (K, N): one input is one row
    codes = np.empty((inputs, outputs), np.uint8)
    for start in range(0, inputs, group):
        part = slice(start, start + group)
        block, inner = weight[part], factor[part, part]
        importance: Floats = (1.0 / np.square(np.diag(inner))).astype(np.float32)
        rounded = begin(start // group, block, importance)
        errors = np.empty_like(block)
        for i in range(group):
            codes[start + i], values = rounded(block[i])
            errors[i] = (block[i] - values) / inner[i, i]
            block[i + 1 :] -= inner[i, i + 1 :, None] * errors[i]
        weight[start + group :] -= factor[part, start + group :].T @ errors
    return codes.T


def factor_of_inverse(moments: Floats) -> Floats:
    """Upper triangular U with U^T U the inverse of the damped moments (K, K)."""
    damped: Doubles = moments.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)  # a view
    mean = float(diagonal.mean())
    diagonal += DAMPING * mean if mean > 0 else 1.0
    # With the order of the inputs turned round, H = L L^T gives H = R R^T with R upper triangular.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    factor: Floats = np.linalg.inv(upper).astype(np.float32)
    return factor


def _best_scales(block: Floats, importance: Floats) -> npt.NDArray[np.float16]:
    """For each output of a group's weights (group, N) the scale of least weighted squared error."""
    index = np.abs(block).argmax(axis=0)[None]
    extreme = np.take_along_axis(block, index, axis=0)[0]
    best_scale = np.zeros(len(extreme), np.float16)
    best_error = np.full(len(extreme), np.inf, np.float32)
    for divisor in DIVISORS:
        scale = (extreme / np.float32(-divisor)).astype(np.float16)
        wide = scale.astype(np.float32)
        inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
        error = block - np.clip(np.rint(block * inverse), -8, 7) * wide
        error = importance @ np.square(error)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    return best_scale
