"""The block types of GGUF files that a format holds as they are."""

from __future__ import annotations

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


def read_blocks(kind: str, raw: Bytes) -> BlockRows:
    """Rows of bytes (rows, row_bytes) of a type of READERS."""
    nbytes, read = READERS[kind].file_types()[kind]
    return read(raw.reshape(len(raw), -1, nbytes))
