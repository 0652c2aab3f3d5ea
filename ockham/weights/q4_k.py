"""GGUF's Q4_K blocks, and products with them."""

from __future__ import annotations

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import chunked, nested_rows
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q4_k", exact=False)
class Q4_K(BlockFormat):
    """GGUF's Q4_K as stored: 4-bit codes, 6-bit scales and minima of 32 inputs, fp16 factors of
    both for 256; inputs in int8 by 256. Takes 4.6 bits a weight."""

    name, activations = "q4_k", BY_256
    shape = BlockShape(256, 4, minima=True, group=32)
    file_type, file_bytes = "Q4_K", 144

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return nested_rows(blocks, chunked(blocks[..., 16:]))
