"""What the bytes of several of GGUF's block types have in common.

Source of the layouts: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows

T = TypeVar("T", bound=np.generic)
U = TypeVar("U", np.uint16, np.uint32)


def half(blocks: Bytes, start: int) -> npt.NDArray[np.float16]:
    """The fp16 at byte `start` of every block: (rows, B)."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0]


def nibbles(packed: Bytes) -> Bytes:
    """Low halves of the last axis, then high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """The 32 bits from byte `start` on, at the place that they have in a code."""
    bits = np.unpackbits(blocks[..., start : start + 4], axis=-1, bitorder="little")
    return bits << np.uint8(4)


def rows(values: npt.NDArray[T]) -> npt.NDArray[T]:
    """(rows, B, ...) as (rows, values)."""
    return values.reshape(len(values), -1)


def six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits in 12 bytes: the first four of each are the low bits
    of a byte, of the others the low four stand in the last four bytes and the rest above them."""
    first, second, last = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = [first & 63, last & 15 | first >> 6 << 4]
    minima = [second & 63, last >> 4 | second >> 6 << 4]
    return np.concatenate(scales, axis=-1), np.concatenate(minima, axis=-1)


def chunked(packed: Bytes) -> Bytes:
    """128 bytes of halves as 256 codes: 32 low, then their 32 high, four times."""
    return nibbles(packed.reshape(*packed.shape[:-1], 4, 32))  # (rows, B, 4, 64)


def nested_rows(blocks: Bytes, codes: Bytes) -> BlockRows:
    """Rows of 256 codes each block, whose factors of 32 inputs begin at byte 4."""
    scales, minima = six_bits(blocks[..., 4:16])
    return BlockRows(rows(codes), half(blocks, 0), half(blocks, 2), rows(scales), rows(minima))


def low_and_high(packed: Bytes) -> Bytes:
    """The halves of each byte, the low one first: (..., n) as (..., 2 n)."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def quarters(packed: Bytes) -> Bytes:
    """64 bytes of four times two bits as 256 codes: of 32 bytes the lowest bits, then those above
    them, twice."""
    pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    wide = packed.reshape(*packed.shape[:-1], 2, 1, 32) >> pair & np.uint8(3)
    return wide.reshape(*packed.shape[:-1], 256)


def bits_of(packed: Bytes) -> Bytes:
    """The bits of the last axis, the lowest of each byte first."""
    return np.unpackbits(packed, axis=-1, bitorder="little")


def words(blocks: Bytes, start: int, stop: int, dtype: type[U]) -> npt.NDArray[U]:
    """Bytes [start, stop) of every block as little-endian integers."""
    return np.ascontiguousarray(blocks[..., start:stop]).view(dtype)
