"""AWQ checkpoints (Lin et al. 2023) in the layout 'gemm' of AutoAWQ.

For a matrix of N outputs and K inputs in G groups: `qweight` int32 (K, N / 8), `qzeros` int32
(G, N / 8), `scales` (G, N). A word holds eight neighbouring outputs, from its lowest bits on in the
order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.errors import ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.model.checkpoint.prequantised.base import (
    SCALES,
    IntegerCodec,
    base_of,
    fp16_holds,
    group_size,
    row_slices,
    unpack,
)
from ockham.model.files.safetensors import Checkpoint
from ockham.model.packed.packing import Stored
from ockham.model.program.weights import Part

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the eight outputs of a word stand in it."""


class Awq(IntegerCodec):
    """The layout of the module's docstring."""

    harmless: tuple[str, ...] = (".bias",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        bits = config.get("bits") or config.get("w_bit")
        if bits != 4:
            raise ModelError(f"AWQ with {bits!r} bits cannot be read, only with 4.")
        version = str(config.get("version") or "gemm").lower()
        if version != "gemm":
            raise ModelError(f"the AWQ layout {version!r} cannot be read, only 'gemm'.")
        self._group_key = "group_size" if "group_size" in config else "q_group_size"

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        return name.endswith(".weight") and base_of(name) + "qweight" in checkpoint.tensors

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        outputs, inputs = part.shape
        base, group = base_of(part.name), group_size(self.config, self._group_key, part)
        if outputs % 8:
            raise ModelError(f"tensor {base + 'qweight'!r} cannot hold {outputs} outputs in words.")
        names = (base + "qweight", base + "qzeros", base + "scales")
        checkpoint.find(names[0], (inputs, outputs // 8), ("I32",))
        checkpoint.find(names[1], (inputs // group, outputs // 8), ("I32",))
        half = fp16_holds(checkpoint, names[2], (inputs // group, outputs))
        encoding = Encoding(4, group, half, bool(self.config.get("zero_point", True)))
        return Stored(f"AWQ ({encoding.describe()})", names, encoding)

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        outputs, inputs = part.shape
        base, group = base_of(part.name), group_size(self.config, self._group_key, part)

        def words(name: str, rows: int) -> npt.NDArray[np.int32]:
            tensor = checkpoint.find(base + name, (rows, outputs // 8), ("I32",))
            return checkpoint.read(tensor).view(np.int32)

        packed = words("qweight", inputs)
        zeros = _outputs(words("qzeros", inputs // group))
        scales = checkpoint.read(
            checkpoint.find(base + "scales", (inputs // group, outputs), SCALES)
        )
        for rows in row_slices(part.start, part.stop):
            first = rows.start // 8 * 8  # blocks of outputs need not start at a word
            codes = _outputs(np.ascontiguousarray(packed[:, first // 8 : -(-rows.stop // 8)]))
            yield QuantisedRows(
                np.ascontiguousarray(codes.T[rows.start - first : rows.stop - first]),
                np.ascontiguousarray(scales.T[rows]),
                np.ascontiguousarray(zeros.T[rows]),
            )


def _outputs(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """(rows, words) as codes (rows, 8 * words)."""
    return unpack(words, 4)[..., list(PLACES)].reshape(len(words), -1)
