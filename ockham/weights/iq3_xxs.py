"""GGUF's IQ3_XXS blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, rows, words
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_grids import grid_of, odd, signs_of
from ockham.weights.block_shape import BlockShape

LEVELS = (4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62)


@register("format", "iq3_xxs", exact=False)
class IQ3_XXS(BlockFormat):
    """GGUF's IQ3_XXS, to the bit: eight magnitudes and a sign in 4 bits, 4-bit scales of 32 inputs,
    an fp16 factor for 256; inputs in int8 by 256. Takes 4.3 bits a weight, and 3.1 in files, which
    name four magnitudes at once."""

    name, activations = "iq3_xxs", BY_256
    shape = BlockShape(256, 4, group=32, levels=LEVELS, halvings=2)
    file_type, file_bytes = "IQ3_XXS", 98

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Of eight words one has four times 7 bits of signs, and a scale in the highest four."""
        magnitudes = grid_of("IQ3_XXS")[blocks[..., 2:66]]  # (rows, B, 64, 4)
        last = words(blocks, 66, 98, np.uint32)
        signs = signs_of(last[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127)
        codes = magnitudes.reshape(*blocks.shape[:-1], 256) + 8 * signs.reshape(
            *blocks.shape[:-1], 256
        )
        return BlockRows(rows(codes), half(blocks, 0), group_scales=rows(odd(last >> 28)))
