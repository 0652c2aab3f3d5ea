"""The block types of GGUF files that a format holds as they are."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.core.registry import techniques
from ockham.weights.block_format import BlockFormat

READERS: dict[str, type[BlockFormat]] = {
    file_type: each.cls
    for each in techniques("format")
    if issubclass(each.cls, BlockFormat)
    for file_type in each.cls.file_types()
}
"""Type, as GGUF names it -> the format that reads and holds it."""


TERNARY = "ternary:-1"
"""The format that holds what `read_i2_s` reads."""


def read_i2_s(raw: Bytes) -> Bytes:
    """Codes (rows, K) of bytes (rows, K / 4): of 128 values in 32 bytes the first 32 stand in the
    highest bits of each, and the last in the lowest."""
    blocks = raw.reshape(len(raw), -1, 1, 32)
    shifts = np.array([6, 4, 2, 0], np.uint8)[:, None]
    codes: Bytes = blocks >> shifts & np.uint8(3)
    return codes.reshape(len(raw), -1)


def read_blocks(kind: str, raw: Bytes) -> BlockRows:
    """Rows of bytes (rows, row_bytes) of a type of READERS."""
    nbytes, read = READERS[kind].file_types()[kind]
    return read(raw.reshape(len(raw), -1, nbytes))
