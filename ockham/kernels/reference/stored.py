"""What the stored bits of keys and values mean, by their type.

float32 and bfloat16 are rounded. The integers are codes, with 4 bytes behind them that say what
those of the row mean. Each row is coded alone, so that state does not depend on what else is
written.

- int8: codes -127 to 127, the nearest, times a scale in fp32: m / 127 for a row of the largest
  magnitude m.
- int4: codes c of 0 to 15 for zero + scale * c. Scale and zero are bf16, the scale in the high half
  of a word; 15 steps span 0.95 times the row's range, and what stands outside has the code at that
  end. The row is multiplied first by an orthonormal Hadamard matrix in blocks of the largest power
  of two that divides E, which spreads single large elements over all of them (QuaRot: Ashkboos et
  al. 2024, arXiv:2404.00456). Two codes stand in a byte, the even element's in the low half.
  Queries are rounded as rows of int8 beside such keys, after the same rotation.

A row of magnitudes below 1e-30 is zero; one that is not finite has NaN for a scale.

Keys have a large part in common: in SmolLM2 two thirds of their energy lie along one direction of
each head. Where that direction is known (`model/key_mirrors.py`), a reflection takes it to the
row whose elements the Hadamard matrix makes equal. It is then what `zero` says, in 16 bits, and the
codes hold the rest. (The same can be had from a mean that is subtracted from the keys, which the
softmax does not see; but the length of the common part differs from token to token.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.kernels.layout import SCALE_BYTES

Stored = npt.NDArray[np.generic]

LEAST = np.float32(1e-30)
SPAN = np.float32(np.float32(0.95) / np.float32(7.5))
"""A step of int4, of half the range of a row."""


class Codec(Protocol):
    """Rows (..., E) to stored bits (..., items) and back."""

    def store(self, rows: Floats) -> Stored: ...

    def widen(self, stored: Stored) -> Floats: ...

    def beside(self, queries: Floats) -> Floats:
        """Queries (..., heads, repeat, E) as they are multiplied with such keys."""
        ...


class _AnyQuery:
    def beside(self, queries: Floats) -> Floats:
        return queries


class _Float32(_AnyQuery):
    def store(self, rows: Floats) -> Stored:
        return rows

    def widen(self, stored: Stored) -> Floats:
        return stored.view(np.float32)


class _Bfloat16(_AnyQuery):
    """Held as its bits (uint16), which NumPy indexes faster."""

    def store(self, rows: Floats) -> Stored:
        bits: Stored = rows.astype(ml_dtypes.bfloat16).view(np.uint16)
        return bits

    def widen(self, stored: Stored) -> Floats:
        wide: Floats = stored.view(ml_dtypes.bfloat16).astype(np.float32)
        return wide


class _Int8(_AnyQuery):
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
        magnitude, _ = _magnitude(rows, 1.0)
        said = magnitude > 0  # and finite
        whole = np.where(said, rows, np.float32(0.0))
        half = np.float32(0.5)
        least = half * whole.min(axis=-1, keepdims=True)
        most = half * whole.max(axis=-1, keepdims=True)
        reach = most - least
        scale = _bf16_above(np.where(reach < LEAST, 0, reach * SPAN).astype(np.float32))
        zero = _bf16(least + most - np.float32(7.5) * scale)
        factor = np.divide(np.float32(1.0), scale, out=np.zeros_like(scale), where=scale > 0)
        codes = np.rint(np.clip((whole - zero) * factor, 0, 15)).astype(np.uint8)
        packed = codes[..., ::2] | codes[..., 1::2] * np.uint8(16)
        scale, zero = (np.where(np.isnan(magnitude), magnitude, each) for each in (scale, zero))
        grid = np.concatenate([zero, scale], axis=-1).astype(ml_dtypes.bfloat16).view(np.uint8)
        return np.concatenate([packed, grid], axis=-1)

    def widen(self, stored: Stored) -> Floats:
        packed = np.ascontiguousarray(stored[..., :-SCALE_BYTES]).view(np.uint8)
        grid = np.ascontiguousarray(stored[..., -SCALE_BYTES:]).view(ml_dtypes.bfloat16)
        zero, scale = np.split(grid.astype(np.float32), 2, axis=-1)
        codes = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32)
        return hadamard(zero + scale * codes.reshape(*packed.shape[:-1], -1))

    def beside(self, queries: Floats) -> Floats:
        """Rounded to 8 bits, rotated as the keys are."""
        eight_bits = _Int8()
        return hadamard(eight_bits.widen(eight_bits.store(hadamard(queries))))


@dataclass(frozen=True, slots=True)
class Mirrored:
    """Rows (..., heads, E) reflected at `mirrors` (heads, E), whose rows have the square length 2,
    and then as `codec` has them."""

    codec: Codec
    mirrors: Floats

    def store(self, rows: Floats) -> Stored:
        return self.codec.store(self._reflected(rows))

    def widen(self, stored: Stored) -> Floats:
        return self._reflected(self.codec.widen(stored))

    def beside(self, queries: Floats) -> Floats:
        of_heads = Mirrored(self.codec, self.mirrors[:, None])
        return of_heads._reflected(self.codec.beside(of_heads._reflected(queries)))

    def _reflected(self, rows: Floats) -> Floats:
        along = (rows * self.mirrors).sum(axis=-1, keepdims=True)
        reflected: Floats = rows - along * self.mirrors
        return reflected


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


def mirror_of(directions: Floats) -> Floats:
    """What takes directions (..., E) to the row that `hadamard` makes constant, or to its negative:
    the mirrors of `Mirrored`. Zero, which reflects nothing, for a direction of length zero."""
    width = directions.shape[-1]
    target = hadamard(np.full(width, 1 / np.sqrt(width), np.float32)).astype(np.float64)
    wide = directions.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    unit = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    # To the one of the two that is farther away, so that nothing cancels.
    sign = np.where((unit * target).sum(axis=-1, keepdims=True) > 0, -1.0, 1.0)
    apart = unit - sign * target
    apart *= np.sqrt(2 / (apart * apart).sum(axis=-1, keepdims=True))
    mirrors: Floats = np.where(lengths > 0, apart, 0).astype(np.float32)
    return mirrors


def _bf16(values: Floats) -> Floats:
    rounded: Floats = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


def _bf16_above(values: Floats) -> Floats:
    """The least bf16 that is not below positive values."""
    bits = (values.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    above: Floats = bits.view(np.float32)
    return above


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
