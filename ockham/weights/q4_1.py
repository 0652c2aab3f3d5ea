"""GGUF's Q4_1 blocks, and products with them."""

from __future__ import annotations

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, nibbles, rows
from ockham.weights.block_format import BY_32, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q4_1", exact=False)
class Q4_1(BlockFormat):
    """GGUF's Q4_1 as stored: 4-bit codes, fp16 scale and minimum for 32 inputs; inputs in int8 by
    32."""

    name, activations = "q4_1", BY_32
    shape = BlockShape(32, 4, minima=True)
    file_type, file_bytes = "Q4_1", 20

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(rows(nibbles(blocks[..., 4:])), half(blocks, 0), half(blocks, 2))
