"""GGUF's Q8_0 blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, rows
from ockham.weights.block_format import BY_32, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q8_0", exact=False)
class Q8_0(BlockFormat):
    """GGUF's Q8_0 as stored: 8-bit codes and an fp16 scale for 32 inputs; inputs in int8 by 32."""

    name, activations = "q8_0", BY_32
    shape = BlockShape(32, 8, zero=128)
    file_type, file_bytes = "Q8_0", 34

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(rows(blocks[..., 2:] ^ np.uint8(0x80)), half(blocks, 0))
