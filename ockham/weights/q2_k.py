"""GGUF's Q2_K blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, quarters, rows
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q2_k", exact=False)
class Q2_K(BlockFormat):
    """GGUF's Q2_K as stored: 2-bit codes, 4-bit scales and minima of 16 inputs, fp16 factors of
    both for 256; inputs in int8 by 256. Takes 3.1 bits a weight."""

    name, activations = "q2_k", BY_256
    shape = BlockShape(256, 2, minima=True, group=16)
    file_type, file_bytes = "Q2_K", 84

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        factors = blocks[..., :16]
        return BlockRows(
            rows(quarters(blocks[..., 16:80])),
            half(blocks, 80),
            half(blocks, 82),
            rows(factors & np.uint8(15)),
            rows(factors >> np.uint8(4)),
        )
