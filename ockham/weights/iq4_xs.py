"""GGUF's IQ4_XS blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, low_and_high, nibbles, rows, words
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_grids import IQ4_LEVELS
from ockham.weights.block_shape import BlockShape


@register("format", "iq4_xs", exact=False)
class IQ4_XS(BlockFormat):
    """GGUF's IQ4_XS as stored: one of 16 levels, 6-bit scales of 32 inputs, an fp16 factor for 256;
    inputs in int8 by 256. Takes 4.3 bits a weight."""

    name, activations = "iq4_xs", BY_256
    shape = BlockShape(256, 4, group=32, signed=True, levels=IQ4_LEVELS)
    file_type, file_bytes = "IQ4_XS", 136

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Of a scale the low four bits stand in bytes 4 to 7, the high two in the word before."""
        above = words(blocks, 2, 4, np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16)
        scales = low_and_high(blocks[..., 4:8]) | (above & 3).astype(np.uint8) << np.uint8(4)
        codes = nibbles(blocks[..., 8:].reshape(*blocks.shape[:-1], 8, 16))
        factors = scales.astype(np.int8) - np.int8(32)
        return BlockRows(rows(codes), half(blocks, 0), group_scales=rows(factors))
