"""The bytes of GGUF's block types, as rows of codes and scales.

Source of the layouts: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ockham.core.quantised import BlockRows

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T", bound=np.generic)


def _half(blocks: Bytes, start: int) -> npt.NDArray[np.float16]:
    """The fp16 at byte `start` of every block: (rows, B)."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0]


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of the last axis, then high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """The 32 bits from byte `start` on, at the place that they have in a code."""
    bits = np.unpackbits(blocks[..., start : start + 4], axis=-1, bitorder="little")
    return bits << np.uint8(4)


def _rows(values: npt.NDArray[T]) -> npt.NDArray[T]:
    """(rows, B, ...) as (rows, values)."""
    return values.reshape(len(values), -1)


def _q8_0(blocks: Bytes) -> BlockRows:
    return BlockRows(_rows(blocks[..., 2:] ^ np.uint8(0x80)), _half(blocks, 0))


def _q5_0(blocks: Bytes) -> BlockRows:
    return BlockRows(_rows(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks, 2)), _half(blocks, 0))


def _q4_1(blocks: Bytes) -> BlockRows:
    return BlockRows(_rows(_nibbles(blocks[..., 4:])), _half(blocks, 0), _half(blocks, 2))


def _q5_1(blocks: Bytes) -> BlockRows:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks, 4)
    return BlockRows(_rows(codes), _half(blocks, 0), _half(blocks, 2))


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits in 12 bytes: the first four of each are the low bits
    of a byte, of the others the low four stand in the last four bytes and the rest above them."""
    first, second, last = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = [first & 63, last & 15 | first >> 6 << 4]
    minima = [second & 63, last >> 4 | second >> 6 << 4]
    return np.concatenate(scales, axis=-1), np.concatenate(minima, axis=-1)


def _chunked(packed: Bytes) -> Bytes:
    """128 bytes of halves as 256 codes: 32 low, then their 32 high, four times."""
    return _nibbles(packed.reshape(*packed.shape[:-1], 4, 32))  # (rows, B, 4, 64)


def _k(blocks: Bytes, codes: Bytes) -> BlockRows:
    scales, minima = _six_bits(blocks[..., 4:16])
    return BlockRows(_rows(codes), _half(blocks, 0), _half(blocks, 2), _rows(scales), _rows(minima))


def _q4_k(blocks: Bytes) -> BlockRows:
    return _k(blocks, _chunked(blocks[..., 16:]))


def _q5_k(blocks: Bytes) -> BlockRows:
    low = _chunked(blocks[..., 48:])
    bit = np.arange(8, dtype=np.uint8)[:, None]  # of byte i: input 32 * bit + i
    high = (blocks[..., None, 16:48] >> bit & np.uint8(1)) << np.uint8(4)
    codes: Bytes = low | high.reshape(low.shape)
    return _k(blocks, codes)


def _q6_k(blocks: Bytes) -> BlockRows:
    """Twice 128 inputs: 64 bytes of low halves (64 low, then 64 high), and 32 bytes of four times
    two bits."""
    halves = blocks.shape[:-1]
    low = _nibbles(blocks[..., :128].reshape(*halves, 2, 64))
    pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (blocks[..., 128:192].reshape(*halves, 2, 1, 32) >> pair & np.uint8(3)) << np.uint8(4)
    codes: Bytes = low | high.reshape(low.shape)
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return BlockRows(_rows(codes), _half(blocks, 208), group_scales=_rows(scales))


READERS: dict[str, tuple[int, Callable[[Bytes], BlockRows]]] = {
    "Q8_0": (34, _q8_0),
    "Q5_0": (22, _q5_0),
    "Q4_1": (20, _q4_1),
    "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
"""Type -> bytes of a block, and what reads (rows, B, bytes)."""


def read_blocks(kind: str, raw: Bytes) -> BlockRows:
    """Rows of bytes (rows, row_bytes) of a type of READERS."""
    block_bytes, read = READERS[kind]
    return read(raw.reshape(len(raw), -1, block_bytes))
