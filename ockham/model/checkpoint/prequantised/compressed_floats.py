"""Floats of 4 and 8 bits in checkpoints of compressed-tensors.

mxfp4-pack-quantized: `weight_packed` uint8 (N, K / 2), of two inputs the first in the low half, in
E2M1; `weight_scale` uint8 (N, K / 32), a power of two with 127 added (E8M0).

nvfp4-pack-quantized: `weight_packed` so; `weight_scale` float8_e4m3fn (N, K / 16);
`weight_global_scale` float32 (1,), by which scales are divided.

float-quantized: `weight` float8_e4m3fn (N, K); `weight_scale` (1,), (N, 1) or by blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ockham.core.arrays import Array
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows
from ockham.core.registry import make
from ockham.model.checkpoint.prequantised.base import base_of
from ockham.model.checkpoint.prequantised.fp8 import (
    CODES,
    as_blocks,
    as_stored,
    block_of,
    widened,
)
from ockham.model.files.safetensors import Checkpoint
from ockham.model.packed.packing import Stored
from ockham.model.program.weights import Part
from ockham.weights.block_bytes import low_and_high

LAYOUTS = {"mxfp4-pack-quantized": 32, "nvfp4-pack-quantized": 16, "float-quantized": 0}
"""`format` of config.json -> the inputs that share a scale, where that is fixed."""


class FloatLayout:
    """How one of the config_groups stores its weights."""

    def __init__(self, name: str, layout: str, weights: Mapping[str, Any]) -> None:
        self.layout = layout
        self.strategy = weights.get("strategy") or "tensor"
        self.group = LAYOUTS[layout]
        bits = weights.get("num_bits")
        if bits != (4 if self.group else 8):
            raise ModelError(f"{layout} with {bits!r} bits (group {name!r}) cannot be read.")
        strategies = ("group", "tensor_group") if self.group else ("tensor", "channel", "block")
        if self.strategy not in strategies:
            raise ModelError(
                f"{layout} with the strategy {self.strategy!r} (group {name!r}) cannot be read."
            )
        self._structure = weights.get("block_structure")
        if self.strategy == "block":
            block_of(self._structure, "block_structure")

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        base, (outputs, inputs) = base_of(part.name), part.shape
        scale = base + "weight_scale"
        if not self.group:
            checkpoint.find(part.name, part.shape, (CODES,))
            return as_stored(checkpoint, part, scale, self._block(part))
        if inputs % self.group:
            raise ModelError(
                f"tensor {part.name!r} has {inputs} inputs, which do not divide into groups of "
                f"{self.group}, as {self.layout} has them."
            )
        packed = base + "weight_packed"
        checkpoint.find(packed, (outputs, inputs // 2), ("U8",))
        self._find_scales(checkpoint, part)
        if self.group == 32:
            return Stored("MXFP4", (packed, scale), blocks="mxfp4")
        divisor = base + "weight_global_scale"
        checkpoint.find(divisor, (1,), ("F32",))
        return Stored("NVFP4", (packed, scale, divisor), blocks="nvfp4")

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        if not self.group:
            scale = base_of(part.name) + "weight_scale"
            yield from as_blocks(checkpoint, part, scale, self._block(part))
            return
        divisor = None
        if self.group == 16:
            name = base_of(part.name) + "weight_global_scale"
            divisor = checkpoint.read(checkpoint.find(name, (1,), ("F32",)))
        for codes, scales in self._pieces(checkpoint, part):
            rows = None if divisor is None else np.full((len(codes), 1), divisor[0], np.float32)
            yield BlockRows(codes, scales.view(np.uint8), divisors=rows)

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        if not self.group:
            scale = base_of(part.name) + "weight_scale"
            yield from widened(checkpoint, part, scale, self._block(part))
            return
        held = make("format", "mxfp4" if self.group == 32 else "nvfp4")
        for rows in self.blocks(checkpoint, part):
            fault = held.fault(rows)
            if fault:
                raise ModelError(f"tensor {part.name!r}: {fault}.")
            values = {"codes": rows.codes, "scales": rows.scales, "divisors": rows.divisors}
            yield held.decode(values, part.shape[-1])

    def _pieces(
        self, checkpoint: Checkpoint, part: Part
    ) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.uint8]], Array]]:
        """Codes and scales of rows [part.start, part.stop)."""
        outputs, inputs = part.shape
        scales = checkpoint.read(self._find_scales(checkpoint, part))
        packed = base_of(part.name) + "weight_packed"
        tensor = checkpoint.find(packed, (outputs, inputs // 2), ("U8",))
        done = part.start
        for block in checkpoint.blocks(tensor, part.start, part.stop):
            yield low_and_high(block.view(np.uint8)), scales[done : done + len(block)]
            done += len(block)

    def _find_scales(self, checkpoint: Checkpoint, part: Part) -> Any:
        name = base_of(part.name) + "weight_scale"
        shape = (part.shape[0], part.shape[-1] // self.group)
        return checkpoint.find(name, shape, ("U8", "F8_E8M0") if self.group == 32 else (CODES,))

    def _block(self, part: Part) -> tuple[int, int] | None:
        if self.strategy == "channel":
            return 1, part.shape[-1]
        return block_of(self._structure, "block_structure") if self.strategy == "block" else None
