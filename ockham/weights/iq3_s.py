"""GGUF's IQ3_S blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import bits_of, half, low_and_high, rows
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_grids import grid_of, odd
from ockham.weights.block_shape import BlockShape

LEVELS = (1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15)


@register("format", "iq3_s", exact=False)
class IQ3_S(BlockFormat):
    """GGUF's IQ3_S, to the bit: eight magnitudes and a sign in 4 bits, 4-bit scales of 32 inputs,
    an fp16 factor for 256; inputs in int8 by 256. Takes 4.3 bits a weight, and 3.4 in files, which
    name four magnitudes at once."""

    name, activations = "iq3_s", BY_256
    shape = BlockShape(256, 4, group=32, levels=LEVELS)
    file_type, file_bytes = "IQ3_S", 110

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        places = blocks[..., 2:66].astype(np.uint16) | bits_of(blocks[..., 66:74]) * np.uint16(256)
        magnitudes = grid_of("IQ3_S")[places].reshape(*blocks.shape[:-1], 256)
        codes = magnitudes + 8 * bits_of(blocks[..., 74:106])
        scales = odd(low_and_high(blocks[..., 106:110]))
        return BlockRows(rows(codes), half(blocks, 0), group_scales=rows(scales))
