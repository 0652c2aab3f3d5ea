"""GGUF's Q5_1 blocks, and products with them."""

from __future__ import annotations

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import fifth_bits, half, nibbles, rows
from ockham.weights.block_format import BY_32, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q5_1", exact=False)
class Q5_1(BlockFormat):
    """GGUF's Q5_1 as stored: 5-bit codes, fp16 scale and minimum for 32 inputs; inputs in int8 by
    32."""

    name, activations = "q5_1", BY_32
    shape = BlockShape(32, 5, minima=True)
    file_type, file_bytes = "Q5_1", 24

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        codes = nibbles(blocks[..., 8:]) | fifth_bits(blocks, 4)
        return BlockRows(rows(codes), half(blocks, 0), half(blocks, 2))
