"""GGUF's MXFP4 blocks, and products with them."""

from __future__ import annotations

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import nibbles, rows
from ockham.weights.block_format import BY_32, BlockFormat
from ockham.weights.block_shape import BlockShape

LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Of E2M1 twice the values, which are whole then; scales are half as large for it."""


@register("format", "mxfp4", exact=False)
class MXFP4(BlockFormat):
    """4-bit floats (E2M1) and one power of two for 32 inputs, as in MXFP4 and as GGUF stores it
    (OCP Microscaling Formats v1.0); inputs in int8 by 32. Takes 4.25 bits a weight."""

    name, activations = "mxfp4", BY_32
    shape = BlockShape(32, 4, levels=LEVELS, scale="exponent")
    file_type, file_bytes = "MXFP4", 17

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(rows(nibbles(blocks[..., 1:])), blocks[..., 0].copy())
