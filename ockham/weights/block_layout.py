"""How matrices of GGUF's block types lie in memory: csrc/kernels/blocks.h, in NumPy.

Blocks of 16 outputs stand in panels, as uint8 (P, B, bytes). Functions take any number of them, of
all lanes (outputs) or of one lane each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Bytes
from ockham.core.quantised import BlockRows
from ockham.weights.panels import OUTPUTS

STEP = 32
"""Inputs whose codes stand together."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """A block type. `group` inputs share a factor of the scale, or 0; `signed` says that those
    factors are; `zero` is the code that means zero where there are no minima."""

    inputs: int
    bits: int
    zero: int = 0
    minima: bool = False
    group: int = 0
    signed: bool = False

    @property
    def groups(self) -> int:
        return self.inputs // self.group if self.group else 0

    def sections(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What a block holds, in order: name, and bytes with the lanes at their place."""
        if self.bits == 8:
            yield "bytes", (self.inputs // STEP, 8, OUTPUTS, 4)
        else:
            yield "steps", (self.inputs // STEP, self.bits, OUTPUTS, 4)
        if self.group:
            yield "group_scales", (self.groups, OUTPUTS, 1)
        if self.group and self.minima:
            yield "group_minima", (self.groups // 2, OUTPUTS, 2)
        yield "scales", (OUTPUTS, 2)
        if self.minima:
            yield "minima", (OUTPUTS, 2)

    @property
    def block_bytes(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.sections())

    def pack(self, rows: BlockRows) -> Bytes:
        """Whole panels of rows as blocks (P, B, bytes)."""
        blocks = rows.codes.shape[1] // self.inputs
        panels = len(rows) // OUTPUTS
        packed = np.empty((panels, blocks, self.block_bytes), np.uint8)
        fields = {
            "bytes": rows.codes,
            "steps": self._steps(rows.codes) if self.bits < 8 else None,
            "scales": rows.scales,
            "minima": rows.minima,
            "group_scales": rows.group_scales,
            "group_minima": rows.group_minima,
        }
        start = 0
        for name, shape in self.sections():
            field = fields[name]
            assert field is not None
            stop = start + int(np.prod(shape))
            lanes = np.ascontiguousarray(field).view(np.uint8)
            lanes = lanes.reshape(panels, OUTPUTS, blocks, *shape[:-2], shape[-1])
            packed[:, :, start:stop] = np.moveaxis(lanes, 1, -2).reshape(panels, blocks, -1)
            start = stop
        return packed

    def unpack(self, blocks: Bytes, lane: npt.NDArray[np.integer] | None = None) -> BlockRows:
        """The opposite of `pack`; with `lane` (P,), of these lanes only: P rows."""
        count, columns = len(blocks), blocks.shape[1]
        found: dict[str, Bytes] = {}
        start = 0
        for name, shape in self.sections():
            stop = start + int(np.prod(shape))
            part = blocks[:, :, start:stop].reshape(count, columns, *shape)
            part = np.moveaxis(part, -2, 1)
            part = part[:, :] if lane is None else part[np.arange(count), lane][:, None]
            found[name] = np.ascontiguousarray(part).reshape(-1, columns, *shape[:-2], shape[-1])
            start = stop
        rows = len(next(iter(found.values())))

        def halves(name: str) -> npt.NDArray[np.float16]:
            return found[name].view(np.float16).reshape(rows, columns)

        def small(name: str, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
            return found[name].view(dtype).reshape(rows, -1)

        return BlockRows(
            self._codes(found["steps"]) if self.bits < 8 else found["bytes"].reshape(rows, -1),
            halves("scales"),
            halves("minima") if self.minima else None,
            small("group_scales", np.int8 if self.signed else np.uint8) if self.group else None,
            found["group_minima"].reshape(rows, -1) if self.group and self.minima else None,
        )

    def _steps(self, codes: Bytes) -> Bytes:
        """Codes (rows, K) below 2^bits as (rows, K / 32, bits, 4): the low four, then the high."""
        low = (codes & 15).reshape(len(codes), -1, 4, 2, 4)
        units = [low[:, :, :, 0] | low[:, :, :, 1] << 4]
        width = self.bits - 4
        if width:
            high = (codes >> 4).reshape(len(codes), -1, width, 8 // width, 4)
            shift = np.arange(0, 8, width, dtype=np.uint8)[:, None]
            units.append(np.bitwise_or.reduce(high << shift, axis=3))
        return np.concatenate(units, axis=2)

    def _codes(self, steps: Bytes) -> Bytes:
        """The opposite of `_steps`, from (rows, B, K / 32 / B, bits, 4)."""
        rows, width = len(steps), self.bits - 4
        steps = steps.reshape(rows, -1, self.bits, 4)
        low = np.stack([steps[:, :, :4] & 15, steps[:, :, :4] >> 4], axis=3).reshape(rows, -1)
        if not width:
            return low
        shift = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        high = steps[:, :, 4:, None] >> shift & ((1 << width) - 1)
        codes: Bytes = low | high.reshape(rows, -1) << 4
        return codes
