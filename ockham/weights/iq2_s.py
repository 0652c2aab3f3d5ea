"""GGUF's IQ2 blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import bits_of, half, low_and_high, rows, words
from ockham.weights.block_format import BY_256, BlockFormat, BlockType
from ockham.weights.block_grids import Integers, grid_of, odd, signs_of
from ockham.weights.block_shape import BlockShape

LEVELS = (8, 25, 43, -8, -25, -43)


def _rows(blocks: Bytes, magnitudes: Bytes, signs: Bytes, scales: Integers) -> BlockRows:
    flat = (*blocks.shape[:-1], 256)
    codes = magnitudes.reshape(flat) + 3 * signs.reshape(flat)
    return BlockRows(rows(codes), half(blocks, 0), group_scales=rows(odd(scales)))


def read_iq2_xxs(blocks: Bytes) -> BlockRows:
    """Eight times four places, then a word: four times 7 bits of signs, and a scale of 32
    inputs."""
    groups = blocks[..., 2:66].reshape(*blocks.shape[:-1], 8, 8)
    last = words(groups, 4, 8, np.uint32)  # (rows, B, 8, 1)
    signs = signs_of(last >> np.arange(0, 28, 7, dtype=np.uint32) & 127)
    scales = np.repeat(last[..., 0] >> 28, 2, axis=-1)
    return _rows(blocks, grid_of("IQ2_XXS")[groups[..., :4]], signs, scales)


def read_iq2_xs(blocks: Bytes) -> BlockRows:
    """32 words: places of 9 bits, and 7 bits of signs."""
    both = words(blocks, 2, 66, np.uint16)
    scales = low_and_high(blocks[..., 66:74])
    return _rows(blocks, grid_of("IQ2_XS")[both & 511], signs_of(both >> 9), scales)


@register("format", "iq2_s", exact=False)
class IQ2_S(BlockFormat):
    """GGUF's IQ2_XXS, IQ2_XS and IQ2_S, to the bit: three magnitudes and a sign in 3 bits, 4-bit
    scales of 16 inputs, an fp16 factor for 256; inputs in int8 by 256. Takes 3.6 bits a weight, and
    2.1 to 2.6 in files, which name eight magnitudes at once."""

    name, activations = "iq2_s", BY_256
    shape = BlockShape(256, 3, group=16, levels=LEVELS, halvings=3)
    file_type, file_bytes = "IQ2_S", 82
    also = {"IQ2_XXS": BlockType(66, read_iq2_xxs), "IQ2_XS": BlockType(74, read_iq2_xs)}

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        above = blocks[..., 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
        places = blocks[..., 2:34] | above.reshape(*blocks.shape[:-1], 32) * np.uint16(256)
        signs = bits_of(blocks[..., 34:66])
        return _rows(blocks, grid_of("IQ2_S")[places], signs, low_and_high(blocks[..., 74:82]))
