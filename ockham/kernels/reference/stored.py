"""What the stored bits of keys and values mean, by their type.

float32 and bfloat16 are rounded. The integers are codes: a row of E elements is its codes times one
fp32 scale, which stands behind them, and the row's largest magnitude m has the largest code. Each
row is coded alone, so that state does not depend on what else is written.

- int8: codes -127 to 127, the nearest; the scale is m / 127.
- int4: codes c of 0 to 15 for 2 c - 15, the nearest; the scale is m / 15. The row is multiplied
  first by an orthonormal Hadamard matrix in blocks of the largest power of two that divides E,
  which spreads single large elements over all of them (QuaRot: Ashkboos et al. 2024,
  arXiv:2404.00456). Two codes stand in a byte, the even element's in the low half.

A row of magnitudes below 1e-30 is zero; one that is not finite has NaN for a scale.
"""

from __future__ import annotations

from typing import Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.kernels.layout import SCALE_BYTES

Stored = npt.NDArray[np.generic]

LEAST = np.float32(1e-30)


class Codec(Protocol):
    """Rows (..., E) to stored bits (..., items) and back."""

    def store(self, rows: Floats) -> Stored: ...

    def widen(self, stored: Stored) -> Floats: ...


class _Float32:
    def store(self, rows: Floats) -> Stored:
        return rows

    def widen(self, stored: Stored) -> Floats:
        return stored.view(np.float32)


class _Bfloat16:
    """Held as its bits (uint16), which NumPy indexes faster."""

    def store(self, rows: Floats) -> Stored:
        bits: Stored = rows.astype(ml_dtypes.bfloat16).view(np.uint16)
        return bits

    def widen(self, stored: Stored) -> Floats:
        wide: Floats = stored.view(ml_dtypes.bfloat16).astype(np.float32)
        return wide


class _Int8:
    def store(self, rows: Floats) -> Stored:
        magnitude, factor = _magnitude(rows, 127.0)
        codes = np.rint(_times(rows, factor)).astype(np.int8)
        return _with_scale(codes.view(np.uint8), magnitude / np.float32(127.0))

    def widen(self, stored: Stored) -> Floats:
        codes, scale = _apart(stored)
        wide: Floats = codes.view(np.int8) * scale
        return wide


class _Int4:
    def store(self, rows: Floats) -> Stored:
        rows = hadamard(rows)
        magnitude, factor = _magnitude(rows, 7.5)
        half = np.where(factor == 0, np.float32(0.0), np.float32(7.5))
        codes = np.rint(_times(rows, factor) + half).astype(np.uint8)
        packed = codes[..., ::2] | codes[..., 1::2] * np.uint8(16)
        return _with_scale(packed, magnitude / np.float32(15.0))

    def widen(self, stored: Stored) -> Floats:
        packed, scale = _apart(stored)
        codes = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32)
        codes = codes.reshape(*packed.shape[:-1], -1) * np.float32(2.0) - np.float32(15.0)
        return hadamard(codes * scale)


CODECS: dict[str, Codec] = {
    "float32": _Float32(),
    "bfloat16": _Bfloat16(),
    "int8": _Int8(),
    "int4": _Int4(),
}
"""By the name of a plane's type."""


def hadamard(rows: Floats) -> Floats:
    """Rows (..., E) times the matrix that int4 is rotated by; its own inverse."""
    width = rows.shape[-1]
    block = width & -width
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.sqrt(np.float32(block))
    blocks = rows.reshape(*rows.shape[:-1], width // block, block)
    turned: Floats = np.matmul(blocks, matrix).reshape(rows.shape)
    return turned


def _magnitude(rows: Floats, most: float) -> tuple[Floats, Floats]:
    """Each row's largest magnitude (..., 1), and what its elements are multiplied with so that the
    largest becomes `most`: 0 for rows that have no codes."""
    magnitude = np.abs(rows).max(axis=-1, keepdims=True)
    magnitude = np.where(np.isfinite(rows).all(axis=-1, keepdims=True), magnitude, np.nan)
    magnitude = np.where(magnitude < LEAST, 0, magnitude).astype(np.float32)
    coded = magnitude > 0
    factor = np.divide(np.float32(most), magnitude, out=np.zeros_like(magnitude), where=coded)
    return magnitude, factor


def _times(rows: Floats, factor: Floats) -> Floats:
    """0 where the factor is, whatever the row holds."""
    return np.multiply(rows, factor, out=np.zeros_like(rows), where=factor != 0)


def _with_scale(codes: npt.NDArray[np.uint8], scale: Floats) -> Stored:
    return np.concatenate([codes, scale.astype(np.float32).view(np.uint8)], axis=-1)


def _apart(stored: Stored) -> tuple[npt.NDArray[np.uint8], Floats]:
    codes = np.ascontiguousarray(stored[..., :-SCALE_BYTES]).view(np.uint8)
    scale = np.ascontiguousarray(stored[..., -SCALE_BYTES:]).view(np.float32)
    return codes, scale
