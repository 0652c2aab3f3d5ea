"""GGUF's Q5_K blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import chunked, nested_rows
from ockham.weights.block_format import BY_256, BlockFormat
from ockham.weights.block_shape import BlockShape


@register("format", "q5_k", exact=False)
class Q5_K(BlockFormat):
    """GGUF's Q5_K as stored: 5-bit codes, 6-bit scales and minima of 32 inputs, fp16 factors of
    both for 256; inputs in int8 by 256. Takes 5.6 bits a weight."""

    name, activations = "q5_k", BY_256
    shape = BlockShape(256, 5, minima=True, group=32)
    file_type, file_bytes = "Q5_K", 176

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        low = chunked(blocks[..., 48:])
        bit = np.arange(8, dtype=np.uint8)[:, None]  # of byte i: input 32 * bit + i
        high = (blocks[..., None, 16:48] >> bit & np.uint8(1)) << np.uint8(4)
        codes: Bytes = low | high.reshape(low.shape)
        return nested_rows(blocks, codes)
