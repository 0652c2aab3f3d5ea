"""GGUF's Q5_0 blocks, and products with them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ockham.core.arrays import Array, Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.kernels.native import core, packing_pool
from ockham.weights.block_bytes import fifth_bits, half, nibbles, rows
from ockham.weights.block_format import BY_32, BlockFormat, BlockLinear
from ockham.weights.block_layout import BlockLayout
from ockham.weights.panels import row_panels
from ockham.weights.scales import DIVISORS, check_scales, choose_scales


@register("format", "q5_0", exact=False)
class Q5_0(BlockFormat):
    """5-bit codes and an fp16 scale for 32 inputs, as GGUF's Q5_0; inputs in int8 by 32. Other
    weights are packed with searched scales. Takes 5.5 bits a weight."""

    name, activations = "q5_0", BY_32
    layout = BlockLayout(32, 5, zero=16)
    file_type, file_bytes = "Q5_0", 22

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(rows(nibbles(blocks[..., 6:]) | fifth_bits(blocks, 2)), half(blocks, 0))

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> BlockLinear:
        """Scales are searched by `choose_scales`. Refuses weights whose scale fp16 cannot hold."""
        packed = self.empty(out_features, in_features)
        middle = self.layout.zero
        for panel, values in row_panels(blocks, out_features, in_features):
            check_scales(values, min(DIVISORS[middle]))
            groups = values.reshape(-1, self.layout.inputs)
            if core is None:
                codes, scale = choose_scales(groups, middle)
            else:
                codes = np.empty(groups.shape, np.uint8)
                scale = np.empty(len(groups), np.float16)
                divisors = np.array(DIVISORS[middle], np.float32)
                core.search_codes(
                    packing_pool(), groups, middle, divisors, codes, scale.view(np.uint16)
                )
            found = BlockRows(codes.reshape(values.shape), scale.reshape(len(values), -1))
            packed.fill(panel, found)
        return packed
