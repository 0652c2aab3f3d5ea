"""GGUF's Q3_K blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, nibbles, quarters, rows
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q3_k", exact=False)
class Q3_K(BlockFormat):
    """GGUF's Q3_K as stored: 3-bit codes, 6-bit scales of 16 inputs, an fp16 factor for 256; inputs
    in int8 by 256. Takes 3.6 bits a weight."""

    name, activations = "q3_k", BY_256
    shape = BlockShape(256, 3, zero=4, group=16, signed=True)
    file_type, file_bytes = "Q3_K", 110

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Bit i of byte j of the first 32: the high bit of input 32 i + j. Of the scales the low
        four bits stand in eight bytes (eight low, then eight high), the two above them in four."""
        bit = np.arange(8, dtype=np.uint8)[:, None]
        high = (blocks[..., None, :32] >> bit & np.uint8(1)).reshape(*blocks.shape[:-1], 256)
        codes: Bytes = quarters(blocks[..., 32:96]) | high << np.uint8(2)
        pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        above = (blocks[..., None, 104:108] >> pair & np.uint8(3)).reshape(*blocks.shape[:-1], 16)
        scales = nibbles(blocks[..., 96:104]) | above << np.uint8(4)
        factors = scales.astype(np.int8) - np.int8(32)
        return BlockRows(rows(codes), half(blocks, 108), group_scales=rows(factors))
