"""GGUF's IQ1 blocks, and products with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, low_and_high, rows, words
from ockham.weights.block_format import BY_256, BlockFormat, BlockType
from ockham.weights.block_grids import Integers, grid_of, odd, three_bits
from ockham.weights.block_shape import BlockShape

LEVELS = (-9, -7, -1, 1, 7, 9)
"""Eighths: -1, 0 or 1, and one more or less."""


def _rows(
    places: Integers,
    more: npt.NDArray[np.bool_],
    factors: npt.NDArray[np.float16],
    scales: Integers,
) -> BlockRows:
    """`more`: whether an eighth is added to the eight inputs of a place, else it is taken."""
    codes = 2 * grid_of("IQ1_S")[places] + more[..., None].astype(np.uint8)  # (rows, B, 32, 8)
    return BlockRows(rows(codes), factors, group_scales=rows(odd(scales)))


def read_iq1_s(blocks: Bytes) -> BlockRows:
    """Eight words: four times three bits of places, a scale of 32 inputs, and the sign of 1/8."""
    last = words(blocks, 34, 50, np.uint16)
    places = blocks[..., 2:34] | three_bits(last) * np.uint16(256)
    more = np.repeat(last < 0x8000, 4, axis=-1)
    scales = np.repeat(last >> 12 & 7, 2, axis=-1)
    return _rows(places, more, half(blocks, 0), scales)


@register("format", "iq1_m", exact=False)
class IQ1_M(BlockFormat):
    """GGUF's IQ1_S and IQ1_M, to the bit: six levels in 3 bits, 3-bit scales of 16 inputs, an fp16
    factor for 256; inputs in int8 by 256. Takes 3.6 bits a weight, and 1.6 to 1.8 in files, which
    name eight levels at once."""

    name, activations = "iq1_m", BY_256
    shape = BlockShape(256, 3, group=16, levels=LEVELS, halvings=3)
    file_type, file_bytes = "IQ1_M", 56
    also = {"IQ1_S": BlockType(50, read_iq1_s)}

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Four words have a quarter of the fp16 factor each, in their highest bits."""
        parts = words(blocks, 48, 56, np.uint16)
        quarters = (parts & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16)
        factors = np.bitwise_or.reduce(quarters, axis=-1).view(np.float16)
        above = low_and_high(blocks[..., 32:48])  # three bits of a place, and whether 1/8 is taken
        places = blocks[..., :32] | (above & 7) * np.uint16(256)
        return _rows(places, above < 8, factors, three_bits(parts))
