"""GGUF's IQ4_NL blocks, and products with them."""

from __future__ import annotations

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, nibbles, rows
from ockham.weights.block_format import BY_32, BlockFormat
from ockham.weights.block_grids import IQ4_LEVELS
from ockham.weights.block_shape import BlockShape


@register("format", "iq4_nl", exact=False)
class IQ4_NL(BlockFormat):
    """GGUF's IQ4_NL as stored: one of 16 levels, an fp16 scale for 32 inputs; inputs in int8 by 32.
    Levels are looked up in a table of 16 bytes. Takes 4.5 bits a weight."""

    name, activations = "iq4_nl", BY_32
    shape = BlockShape(32, 4, levels=IQ4_LEVELS)
    file_type, file_bytes = "IQ4_NL", 18

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(rows(nibbles(blocks[..., 2:])), half(blocks, 0))
