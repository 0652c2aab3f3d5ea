"""GPTQ checkpoints (Frantar et al. 2022), as AutoGPTQ and GPTQModel write them.

For a matrix of N outputs and K inputs, with 32 / bits codes in a 32-bit word, lowest bits first:
`qweight` int32 (K * bits / 32, N), words along the inputs; `qzeros` int32 (G, N * bits / 32), words
along the outputs; `scales` (G, N); `g_idx` int32 (K,), the group of each input (may be left out).
Zero points are stored less one, unless config.json says `checkpoint_format: gptq_v2`.

Inputs that were reordered by their activations (`desc_act`) leave a `g_idx` that does not go up in
steps of the group size. Each input then has a scale of its own, which no format holds: such a
matrix is widened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ockham.core.arrays import Array
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

FORMATS = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` -> what is added to a stored zero point."""


class Gptq(IntegerCodec):
    """The layout of the module's docstring, for 4 or 8 bits."""

    # AutoGPTQ writes biases of zeros for layers that have none.
    harmless: tuple[str, ...] = (".g_idx", ".bias")

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.bits: int = config.get("bits", 0)
        if self.bits not in (4, 8):
            raise ModelError(f"GPTQ with {self.bits!r} bits cannot be read, only with 4 or 8.")
        layout = config.get("checkpoint_format") or "gptq"
        if layout not in FORMATS:
            raise ModelError(
                f"the GPTQ layout {layout!r} cannot be read, only {' and '.join(FORMATS)}."
            )
        self.zero_offset = FORMATS[layout]
        if config.get("dynamic"):
            raise ModelError(
                "config.json gives GPTQ settings for single modules ('dynamic'), which cannot be "
                "read; quantise all of them alike."
            )

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        return name.endswith(".weight") and base_of(name) + "qweight" in checkpoint.tensors

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        outputs, inputs = part.shape
        base, group, per_word = base_of(part.name), self._group(part), 32 // self.bits
        if inputs % per_word or outputs % per_word:
            raise ModelError(
                f"tensor {base + 'qweight'!r} cannot hold {outputs} x {inputs} codes of "
                f"{self.bits} bits in whole words."
            )
        names = [base + "qweight", base + "qzeros", base + "scales"]
        checkpoint.find(names[0], (inputs // per_word, outputs), ("I32",))
        checkpoint.find(names[1], (inputs // group, outputs // per_word), ("I32",))
        half = fp16_holds(checkpoint, names[2], (inputs // group, outputs))
        order = self._order(checkpoint, part, group)
        if order is not None:
            group = 1
        if base + "g_idx" in checkpoint.tensors:
            names.append(base + "g_idx")
        encoding = Encoding(self.bits, group, half, not self.config.get("sym", True))
        return Stored(f"GPTQ ({encoding.describe()})", tuple(names), encoding)

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        outputs, inputs = part.shape
        base, group, per_word = base_of(part.name), self._group(part), 32 // self.bits
        words = checkpoint.read(
            checkpoint.find(base + "qweight", (inputs // per_word, outputs), ("I32",))
        )
        zeros = unpack(
            checkpoint.read(
                checkpoint.find(base + "qzeros", (inputs // group, outputs // per_word), ("I32",))
            ).view(np.int32),
            self.bits,
        ).reshape(inputs // group, outputs)
        if self.zero_offset and (zeros == (1 << self.bits) - 1).any():
            raise ModelError(
                f"tensor {base + 'qzeros'!r} holds the zero point {(1 << self.bits) - 1} less "
                "one, which some readers of GPTQ take for 0 and others not; write the checkpoint "
                "again as gptq_v2."
            )
        zeros += np.uint8(self.zero_offset)
        scales = checkpoint.read(
            checkpoint.find(base + "scales", (inputs // group, outputs), SCALES)
        )
        order = self._order(checkpoint, part, group)
        if order is not None:
            zeros, scales = zeros[order], scales[order]
        for rows in row_slices(part.start, part.stop):
            codes = unpack(np.ascontiguousarray(words.T[rows]).view(np.int32), self.bits)
            yield QuantisedRows(
                codes.reshape(len(codes), inputs),
                np.ascontiguousarray(scales.T[rows]),
                np.ascontiguousarray(zeros.T[rows]),
            )

    def _group(self, part: Part) -> int:
        return group_size(self.config, "group_size", part)

    def _order(self, checkpoint: Checkpoint, part: Part, group: int) -> Array | None:
        """The group of each input, or None where they follow one another."""
        name, inputs = base_of(part.name) + "g_idx", part.shape[-1]
        if name not in checkpoint.tensors:
            if self.config.get("desc_act"):
                raise ModelError(
                    f"config.json says desc_act, but the checkpoint has no tensor {name!r}."
                )
            return None
        tensor = checkpoint.find(name, (inputs,), ("I32",))
        order = checkpoint.read(tensor)
        if (order == np.arange(inputs) // group).all():
            return None
        if order.min() < 0 or order.max() >= inputs // group:
            raise ModelError(f"tensor {name!r} names groups that do not exist.")
        return order
