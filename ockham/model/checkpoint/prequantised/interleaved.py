"""Stacked experts that have their inputs before their outputs: gates and ups that take turns, as
gpt-oss has them, plain or in MXFP4, or in halves, as Qwen3-VL has them.

In floats: `experts.gate_up_proj` (experts, D, 2 I), output 2 i the gate's i and output 2 i + 1 the
up's, or the gate's I before the up's; `experts.down_proj` (experts, I, D). In MXFP4: NAME_blocks
uint8 (experts, outputs, inputs / 32, 16), of two inputs the first in the low half, in E2M1;
NAME_scales uint8 (experts, outputs, inputs / 32), a power of two with 127 added (E8M0). Biases:
NAME_bias (experts, outputs).

The compiler is shown `experts.N.gate_proj.weight` and so on, as of experts that are stored one by
one. One expert's tensor is read whole, twice where gates and ups are asked for apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ockham.core.arrays import Array
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.core.registry import make
from ockham.model.checkpoint.prequantised.base import row_slices
from ockham.model.files.safetensors import Checkpoint, Tensor
from ockham.model.packed.packing import Stored
from ockham.model.program.record import ExpertRecord
from ockham.model.program.weights import Part
from ockham.weights.block_bytes import low_and_high

METHOD = "mxfp4"
"""quant_method of config.json."""

GROUP = 32
"""Inputs that share a scale."""

GATE_UP, DOWN = "gate_up_proj", "down_proj"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where what is shown as one expert's stands: in part number `first` of `step`, of expert
    number `expert` of the tensors that begin with `stacked`. Parts take turns, or stand one behind
    the other."""

    stacked: str
    expert: int
    first: int
    step: int
    bias: bool
    turns: bool

    def own(self, outputs: int) -> slice:
        """The outputs of the part, of so many of all parts."""
        if self.turns:
            return slice(self.first, outputs, self.step)
        each = outputs // self.step
        return slice(self.first * each, (self.first + 1) * each)


class Interleaved:
    """The layout of the module's docstring."""

    harmless: tuple[str, ...] = ()

    def __init__(self, record: ExpertRecord, experts: int, quantised: Mapping[str, Any]) -> None:
        """`experts` are those of a layer, `quantised` what config.json says of quantisation, which
        may be nothing. Raises ModelError for another method."""
        method = quantised.get("quant_method", METHOD)
        if method != METHOD:
            raise ModelError(
                f"config.json says that the checkpoint is quantised as {method!r}; of stacked "
                f"experts whose gates and ups take turns only {METHOD} can be read."
            )
        assert record.gate is not None, "what is stacked so is gated"
        self._experts = experts
        self._turns = record.interleaved
        self._ways = {
            record.gate: (GATE_UP, 0, 2),
            record.up: (GATE_UP, 1, 2),
            record.down: (DOWN, 0, 1),
        }
        names = "|".join(map(re.escape, self._ways))
        self._name = re.compile(rf"(.+\.experts\.)(\d{{1,9}})\.({names})\.(weight|bias)")

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        place = self._place(name)
        if place is None:
            return False
        ends = ("_bias",) if place.bias else ("", "_blocks")
        return any(place.stacked + end in checkpoint.tensors for end in ends)

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        place = self._found(part)
        if place.bias or not self._quantised(checkpoint, place):
            tensor, _ = self._floats_of(checkpoint, place, part)
            return Stored(tensor.dtype, (tensor.name,))
        blocks, scales = self._blocks_of(checkpoint, place, part)
        return Stored("MXFP4", (blocks.name, scales.name), blocks="mxfp4")

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        raise ModelError(f"tensor {part.name!r} has no integer codes.")

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        place = self._found(part)
        packed, exponents = (
            checkpoint.read_entry(tensor, place.expert).reshape(tensor.shape[1], -1)
            for tensor in self._blocks_of(checkpoint, place, part)
        )
        own = place.own(len(packed))
        codes, scales = packed[own], exponents[own]
        for rows in row_slices(part.start, part.stop):
            yield BlockRows(
                low_and_high(np.ascontiguousarray(codes[rows])), scales[rows].view(np.uint8)
            )

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        place = self._found(part)
        if not place.bias and self._quantised(checkpoint, place):
            yield from self._widened(checkpoint, part)
            return
        tensor, upright = self._floats_of(checkpoint, place, part)
        values = checkpoint.read_entry(tensor, place.expert)
        by_output = values if place.bias or upright else values.T
        own = by_output[place.own(len(by_output))]
        if place.bias:
            yield np.ascontiguousarray(own).reshape(1, -1)
            return
        for rows in row_slices(part.start, part.stop):
            yield np.ascontiguousarray(own[rows])

    def _widened(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        held = make("format", "mxfp4")
        for rows in self.blocks(checkpoint, part):
            fault = held.fault(rows)
            if fault:
                raise ModelError(f"tensor {part.name!r}: {fault}.")
            yield held.decode({"codes": rows.codes, "scales": rows.scales}, part.shape[-1])

    def _place(self, name: str) -> _Place | None:
        found = self._name.fullmatch(name)
        if found is None:
            return None
        stacked, first, step = self._ways[found[3]]
        bias = found[4] == "bias"
        return _Place(found[1] + stacked, int(found[2]), first, step, bias, self._turns)

    def _found(self, part: Part) -> _Place:
        place = self._place(part.name)
        if place is None or place.expert >= self._experts:
            raise ModelError(f"tensor {part.name!r} is none of {self._experts} experts.")
        return place

    def _quantised(self, checkpoint: Checkpoint, place: _Place) -> bool:
        return place.stacked + "_blocks" in checkpoint.tensors

    def _floats_of(self, checkpoint: Checkpoint, place: _Place, part: Part) -> tuple[Tensor, bool]:
        """The tensor of floats that a part is of, and whether its outputs stand before its inputs,
        as transformers may write what it read the other way."""
        outputs = place.step * part.shape[0]
        if place.bias:
            return checkpoint.find(f"{place.stacked}_bias", (self._experts, outputs)), False
        shape = (self._experts, part.shape[-1], outputs)
        turned = (self._experts, outputs, part.shape[-1])
        held = checkpoint.tensors.get(place.stacked)
        upright = not self._turns and held is not None and held.shape == turned != shape
        return checkpoint.find(place.stacked, turned if upright else shape), upright

    def _blocks_of(
        self, checkpoint: Checkpoint, place: _Place, part: Part
    ) -> tuple[Tensor, Tensor]:
        """The tensors of the codes and of the scales. Raises ModelError if they are missing or of
        another shape."""
        outputs, inputs = part.shape
        if inputs % GROUP:
            raise ModelError(
                f"tensor {part.name!r} has {inputs} inputs, which do not divide into groups of "
                f"{GROUP}, as MXFP4 has them."
            )
        shape = (self._experts, place.step * outputs, inputs // GROUP)
        blocks = checkpoint.find(f"{place.stacked}_blocks", (*shape, GROUP // 2), ("U8",))
        return blocks, checkpoint.find(f"{place.stacked}_scales", shape, ("U8", "F8_E8M0"))
