"""Ternary weights of BitNet (arXiv:2402.17764), as transformers stores them (`quant_method:
bitnet`).

Packed: `weight` uint8 (N / 4, K), of which bits 2 i and 2 i + 1 of row r hold row i * N / 4 + r of
the matrix, plus 1; `weight_scale` (1,), by which codes are multiplied, or of the class "bitlinear"
divided.

Online (`quantization_mode`): `weight` in floats (N, K), of which a weight is the ratio to the
matrix's mean magnitude, rounded and clipped to -1, 0 and 1, times that mean. The mean has the dtype
of the weights, as in transformers.

Either way a matrix has one scale, and its products quantise inputs to 8 bits with one scale for a
row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.core.registry import make
from ockham.model.checkpoint.prequantised.base import SCALES, base_of, row_slices
from ockham.model.files.safetensors import DTYPES, Checkpoint
from ockham.model.packed.packing import Stored
from ockham.model.program.weights import Part

FORMAT = "ternary:-1"
CLASSES = ("bitlinear", "autobitlinear")
MODES = ("offline", "online")
PLAIN = ("embed_tokens.weight", "lm_head.weight")
"""Ends of the names of matrices that are never ternary, where the architecture does not say it."""

ONLINE = {"linear_class": CLASSES[1], "quantization_mode": MODES[1]}
"""What config.json would say of a checkpoint in floats."""

LEAST_MEAN = np.float32(1e-5)


class BitNet:
    """The layouts of the module's docstring."""

    harmless: tuple[str, ...] = ()

    def __init__(self, config: Mapping[str, Any], plain: tuple[str, ...] = PLAIN) -> None:
        """`plain` are the ends of the names of matrices that are not ternary."""
        kind = config.get("linear_class") or CLASSES[0]
        mode = config.get("quantization_mode") or MODES[0]
        for value, known, key in (
            (kind, CLASSES, "linear_class"),
            (mode, MODES, "quantization_mode"),
        ):
            if value not in known:
                raise ModelError(
                    f"BitNet with the {key} {value!r} cannot be read, only with "
                    f"{' or '.join(known)}."
                )
        if config.get("use_rms_norm"):
            raise ModelError(
                "BitNet with a norm before each product (use_rms_norm) cannot be read; only "
                "checkpoints whose norms are the architecture's own can."
            )
        self._divides = kind == "bitlinear"
        self._online = mode == "online" and not self._divides
        self._plain = plain
        self._apart = tuple(config.get("modules_to_not_convert") or ())

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        tensor = checkpoint.tensors.get(name)
        if tensor is None or not name.endswith(".weight"):
            return False
        if not self._online:
            return tensor.dtype == "U8"
        module = name.removesuffix(".weight")
        apart = any(module == each or module.endswith(f".{each}") for each in self._apart)
        return (
            tensor.dtype in DTYPES
            and len(tensor.shape) == 2
            and not name.endswith(self._plain)
            and not apart
        )

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        outputs, inputs = part.shape
        if self._online:
            checkpoint.find(part.name, part.shape)
            return Stored("BitNet", (part.name,), blocks=FORMAT)
        if outputs % 4:
            raise ModelError(f"tensor {part.name!r} cannot hold {outputs} rows, four in a byte.")
        checkpoint.find(part.name, (outputs // 4, inputs), ("U8",))
        return Stored("BitNet", (part.name, self._scale_name(checkpoint, part)), blocks=FORMAT)

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        raise ModelError(f"tensor {part.name!r} has codes of fewer than 4 bits.")

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        """Codes, and the scale (rows, 1) of each."""
        rows = self._rounded if self._online else self._unpacked
        for codes, scale in rows(checkpoint, part):
            yield BlockRows(codes, np.full((len(codes), 1), scale, np.float32))

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        held = make("format", FORMAT)
        for rows in self.blocks(checkpoint, part):
            yield held.decode({"codes": rows.codes, "scale": rows.scales}, part.shape[-1])

    @staticmethod
    def _scale_name(checkpoint: Checkpoint, part: Part) -> str:
        name = base_of(part.name) + "weight_scale"
        shape = () if name in checkpoint.tensors and not checkpoint.tensors[name].shape else (1,)
        return checkpoint.find(name, shape, SCALES).name

    def _unpacked(
        self, checkpoint: Checkpoint, part: Part
    ) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.uint8]], np.float32]]:
        outputs = part.shape[0]
        held = checkpoint.tensors[self._scale_name(checkpoint, part)]
        scale = np.float32(checkpoint.read(held).astype(np.float32).reshape(()))
        if self._divides:
            if scale == 0:
                raise ModelError(f"tensor {part.name!r}: weights are divided by a scale of zero.")
            scale = np.float32(1) / scale
        tensor, stored = checkpoint.tensors[part.name], outputs // 4
        for quarter in range(4):
            first, last = (
                min(max(row - quarter * stored, 0), stored) for row in (part.start, part.stop)
            )
            for packed in checkpoint.blocks(tensor, first, last):
                yield (packed.view(np.uint8) >> np.uint8(2 * quarter)) & np.uint8(3), scale

    def _rounded(
        self, checkpoint: Checkpoint, part: Part
    ) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.uint8]], np.float32]]:
        tensor = checkpoint.tensors[part.name]
        total = 0.0
        for block in checkpoint.blocks(tensor, 0, part.shape[0]):
            total += float(np.abs(block.astype(np.float32)).sum(dtype=np.float64))
        if not np.isfinite(total):
            raise ModelError(f"tensor {part.name!r}: NaN or infinity stands in it.")
        mean = np.maximum(np.float32(total / (part.shape[0] * part.shape[1])), LEAST_MEAN)
        inverse = np.float32(1) / mean
        scale = np.float32((np.float32(1) / inverse).astype(DTYPES[tensor.dtype]))
        for block in checkpoint.blocks(tensor, part.start, part.stop):
            for rows in row_slices(0, len(block)):
                wide: Floats = block[rows].astype(np.float32)
                signs = np.clip(np.rint(wide * inverse), -1, 1)
                yield (signs + 1).astype(np.uint8), scale
