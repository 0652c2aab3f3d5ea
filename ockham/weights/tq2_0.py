"""GGUF's TQ2_0 blocks, and products with them."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.weights.block_bytes import half, quarters, rows
from ockham.weights.block_format import BY_256, BlockFormat, BlockType
from ockham.weights.block_shape import BlockShape


def read_tq1_0(blocks: Bytes) -> BlockRows:
    """TQ1_0: bytes of five digits to the base of 3 (the last four: of four), as fractions of 256.

    Multiplied by a power of 3 modulo 256 and by 3, a byte has the next digit above its 8 bits."""

    def digits(start: int, stop: int, count: int) -> Bytes:
        powers = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
        fractions = blocks[..., None, start:stop] * powers
        wide = (fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8)
        return wide.reshape(*blocks.shape[:-1], -1)

    codes = np.concatenate([digits(0, 32, 5), digits(32, 48, 5), digits(48, 52, 4)], axis=-1)
    return BlockRows(rows(codes), half(blocks, 52))


@register("format", "tq2_0", exact=False)
class TQ2_0(BlockFormat):
    """Weights of -1, 0 and 1 in 2 bits with an fp16 scale for 256 inputs, as GGUF's TQ2_0; of TQ1_0
    the same values, which takes 1.7 bits in files. Inputs in int8 by 256. Takes 2.1 bits a
    weight."""

    name, activations = "tq2_0", BY_256
    shape = BlockShape(256, 2, zero=1)
    file_type, file_bytes = "TQ2_0", 66
    also = {"TQ1_0": BlockType(54, read_tq1_0)}

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        return BlockRows(rows(quarters(blocks[..., :64])), half(blocks, 64))
