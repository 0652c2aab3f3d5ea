"""GGUF's Q5_0 blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Array, Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.core.seams import Values
from ockham.kernels.native import core, packing_pool
from ockham.weights.block_bytes import fifth_bits, half, nibbles
from ockham.weights.block_bytes import rows as by_row
from ockham.weights.block_format import BY_32, BlockFormat
from ockham.weights.block_shape import BlockShape
from ockham.weights.scales import DIVISORS, check_scales, choose_scales


@register("format", "q5_0", exact=False)
class Q5_0(BlockFormat):
    """5-bit codes and an fp16 scale for 32 inputs, as GGUF's Q5_0; inputs in int8 by 32. Other
    weights are packed with searched scales. Takes 5.5 bits a weight."""

    name, activations = "q5_0", BY_32
    shape = BlockShape(32, 5, zero=16)
    file_type, file_bytes = "Q5_0", 22

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(by_row(nibbles(blocks[..., 6:]) | fifth_bits(blocks, 2)), half(blocks, 0))

    def encode(self, rows: Array) -> Values:
        """Scales are searched by `choose_scales`. Refuses weights whose scale fp16 cannot hold."""
        wide, middle = np.ascontiguousarray(rows, np.float32), self.shape.zero
        check_scales(wide, min(DIVISORS[middle]))
        groups = wide.reshape(-1, self.shape.inputs)
        if core is None:
            codes, scales = choose_scales(groups, middle)
        else:
            codes = np.empty(groups.shape, np.uint8)
            scales = np.empty(len(groups), np.float16)
            divisors = np.array(DIVISORS[middle], np.float32)
            core.search_codes(
                packing_pool(), groups, middle, divisors, codes, scales.view(np.uint16)
            )
        return {"codes": codes.reshape(wide.shape), "scales": scales.reshape(len(wide), -1)}
