"""GGUF's Q6_K blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, nibbles, rows
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q6_k", exact=False)
class Q6_K(BlockFormat):
    """GGUF's Q6_K as stored: 6-bit codes, 8-bit scales of 16 inputs, an fp16 factor for 256; inputs
    in int8 by 256. Takes 6.6 bits a weight."""

    name, activations = "q6_k", BY_256
    shape = BlockShape(256, 6, zero=32, group=16, signed=True)
    file_type, file_bytes = "Q6_K", 210

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Twice 128 inputs: 64 bytes of low halves (64 low, then 64 high), and 32 bytes of four
        times two bits."""
        halves = blocks.shape[:-1]
        low = nibbles(blocks[..., :128].reshape(*halves, 2, 64))
        pair = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        pairs = blocks[..., 128:192].reshape(*halves, 2, 1, 32) >> pair
        high = (pairs & np.uint8(3)) << np.uint8(4)
        codes: Bytes = low | high.reshape(low.shape)
        scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
        return BlockRows(rows(codes), half(blocks, 208), group_scales=rows(scales))
