"""NVFP4's blocks, as GGUF files and compressed-tensors store them, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import nibbles, rows
from ockham.weights.block_format import BY_16, BlockFormat
from ockham.weights.block_shape import BlockShape

LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Of E2M1 twice the values, which are whole then; scales are half as large for it."""


@register("format", "nvfp4", exact=False)
class NVFP4(BlockFormat):
    """4-bit floats (E2M1) and a float of 8 bits (E4M3) for 16 inputs, divided by a number of each
    row, as in NVFP4; inputs in int8 by 16. Takes 4.5 bits a weight."""

    name, activations = "nvfp4", BY_16
    shape = BlockShape(16, 4, levels=LEVELS, scale="small", divisors=True)
    file_type, file_bytes = "NVFP4", 36

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Four scales of 16 inputs, without a sign; the largest byte stands for zero there."""
        scales = np.where(blocks[..., :4] == 0x7F, 0, blocks[..., :4] & 0x7F).astype(np.uint8)
        codes = nibbles(blocks[..., 4:].reshape(*blocks.shape[:-1], 4, 8))
        ones = np.ones((len(blocks), 1), np.float32)
        return BlockRows(rows(codes), rows(scales), divisors=ones)
