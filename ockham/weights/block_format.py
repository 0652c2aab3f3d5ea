"""The block types of GGUF files, held to the bit; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Bytes, Floats
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, joined
from ockham.core.registry import techniques
from ockham.core.seams import Arithmetic, Format
from ockham.kernels.memory import allocate_array
from ockham.kernels.native import core, packing_pool
from ockham.weights.block_layout import BlockLayout
from ockham.weights.panels import OUTPUTS, panels, quantise
from ockham.weights.ungrouped import Ungrouped

PANELS_AT_ONCE = 16
"""Panels that the plain product widens at a time."""


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


class BlockLinear:
    """`arrays["weight"]`: uint8 (P, B, bytes), B blocks of each of P panels (kernels/blocks.h)."""

    def __init__(
        self, format_name: str, layout: BlockLayout, out_features: int, in_features: int
    ) -> None:
        self.format, self.layout = format_name, layout
        self.out_features, self.in_features = out_features, in_features
        shape = (panels(out_features), in_features // layout.inputs, layout.block_bytes)
        self.weight: npt.NDArray[np.uint8] = allocate_array(shape, np.uint8)  # type: ignore[assignment]
        self.arrays: dict[str, Array] = {"weight": self.weight}

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def matmul(self, x: Floats) -> Floats:
        """What csrc/kernels/blocks.h says, where a are a group's inputs as int8 (`quantise`).

        Integer sums are exact. An fma is done in float64, whose two roundings differ from one in
        about one case of 2^29.
        """
        columns = self.in_features // self.layout.inputs
        values, scale_x = quantise(x.reshape(len(x), columns, self.layout.inputs))
        a = np.ascontiguousarray(values.transpose(1, 0, 2), np.float64)  # (B, M, inputs)
        by_column = scale_x[..., 0].T[:, :, None]  # (B, M, 1)
        product = np.empty((len(x), len(self.weight) * OUTPUTS), np.float32)
        for first in range(0, len(self.weight), PANELS_AT_ONCE):
            rows = self.layout.unpack(self.weight[first : first + PANELS_AT_ONCE])
            terms = self._terms(rows, a, by_column)
            y = np.zeros((len(x), len(rows)), np.float32)
            for column in range(columns):
                for total, scale in terms:
                    wide = total[column].astype(np.float64) * scale[column] + y
                    y = wide.astype(np.float32)
            product[:, first * OUTPUTS : first * OUTPUTS + len(rows)] = y
        return product[:, : self.out_features]

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        """The values that the `gguf` package dequantises, to the bit."""
        rows = self.layout.unpack(self.weight[ids // OUTPUTS], ids % OUTPUTS)
        layout, count = self.layout, len(ids)
        shape = (count, self.in_features // layout.inputs, layout.groups or 1, -1)
        scales = rows.scales.astype(np.float32)[:, :, None, None]
        codes = rows.codes.reshape(shape).astype(np.float32) - np.float32(layout.zero)
        if rows.group_scales is not None:
            scales = scales * rows.group_scales.reshape(shape).astype(np.float32)
        values: Floats = scales * codes
        if rows.minima is not None:
            minima = rows.minima.astype(np.float32)[:, :, None, None]
            if rows.group_minima is None:
                values = values + minima
            else:
                values = values - minima * rows.group_minima.reshape(shape).astype(np.float32)
        return values.reshape(count, self.in_features)

    def fill(self, panel: int, rows: BlockRows) -> None:
        """Store outputs from panel `panel` on: whole panels of rows."""
        into = self.weight[panel : panel + len(rows) // OUTPUTS]
        if core is None:
            into[:] = self.layout.pack(rows)
            return

        core.pack_blocks(
            packing_pool(),
            getattr(core.Kind, self.format.upper()),
            np.ascontiguousarray(rows.codes),
            _flat(rows.scales),
            None if rows.minima is None else _flat(rows.minima),
            None if rows.group_scales is None else _flat(rows.group_scales),
            None if rows.group_minima is None else _flat(rows.group_minima),
            into.reshape(-1),
        )

    def _terms(
        self, rows: BlockRows, a: npt.NDArray[np.float64], scale_x: Floats
    ) -> list[tuple[Floats, Floats]]:
        """Factors (B, M, outputs), or (B, M, 1), of what is added to y for each block in turn."""
        columns = len(a)

        def by_block(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
            """(outputs, B * n) as (B, n, outputs)."""
            return values.astype(np.float64).reshape(len(rows), columns, -1).transpose(1, 2, 0)

        codes = by_block(rows.codes) - self.layout.zero
        if rows.group_scales is not None:
            codes *= np.repeat(by_block(rows.group_scales), self.layout.group, axis=1)
        d = by_block(rows.scales).astype(np.float32)
        terms = [((a @ codes).astype(np.float32), scale_x * d)]
        if rows.minima is not None:
            m = by_block(rows.minima).astype(np.float32)
            if rows.group_minima is None:
                total = a.sum(axis=2, keepdims=True).astype(np.float32) * scale_x
                terms.append((total, np.broadcast_to(m, (columns, 1, len(rows)))))
            else:
                sums = a.reshape(columns, -1, self.layout.groups, self.layout.group).sum(axis=3)
                total = (sums @ by_block(rows.group_minima)).astype(np.float32)
                terms.append((total, -scale_x * m))
        return terms


class BlockFormat(Ungrouped):
    """A format that takes over one of GGUF's block types as it is, and quantises nothing itself.

    `file_type` is the type's name in GGUF files, `file_bytes` what a block takes there.
    """

    name: ClassVar[str]
    activations: ClassVar[str]
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    layout: ClassVar[BlockLayout]
    file_type: ClassVar[str]
    file_bytes: ClassVar[int]

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Blocks as a GGUF file has them, (rows, B, file_bytes)."""
        raise NotImplementedError

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        self._check(in_features)
        blocks = in_features // self.layout.inputs
        return panels(out_features) * blocks * self.layout.block_bytes

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> BlockLinear:
        formats: list[type[Format]] = [each.cls for each in techniques("format")]
        others = [
            each.name
            for each in formats
            if each.dtype is None and each.pack is not BlockFormat.pack
        ]
        raise ModelError(
            f"{self.name} holds what a GGUF file stores in it, and packs no other weights: leave "
            "quantization out, or say 'stored', to take every matrix as the file has it; "
            f"{', '.join(others[:-1])} and {others[-1]} pack weights anew."
        )

    def empty(self, out_features: int, in_features: int, zeros: bool = False) -> BlockLinear:
        """A matrix of zeros, to be filled."""
        self._check(in_features)
        return BlockLinear(self.name, self.layout, out_features, in_features)

    def adopt(
        self, out_features: int, in_features: int, blocks: Iterable[BlockRows]
    ) -> BlockLinear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        Raises ModelError if they do not add up to the shape, or a scale is not finite.
        """
        packed = self.empty(out_features, in_features)
        done = 0
        held: list[BlockRows] = []
        for block in blocks:
            start = done + sum(map(len, held))
            stop = start + len(block)
            if block.codes.shape[1] != in_features or stop > out_features:
                raise ModelError(
                    f"rows of shape {block.codes.shape} do not fit at row {start} of a matrix of "
                    f"shape {(out_features, in_features)}."
                )
            fault = block.fault()
            if fault:
                raise ModelError(f"{fault} (rows {start} to {stop - 1}).")
            rows = joined([*held, block])
            whole = len(rows) // OUTPUTS * OUTPUTS
            if whole:
                packed.fill(done // OUTPUTS, rows.cut(0, whole))
            done += whole
            held = [rows.cut(whole, len(rows))]
        found = done + sum(map(len, held))
        if found != out_features:
            raise ModelError(f"only {found} of {out_features} rows were found.")
        if found > done:
            padding = [held[0].cut(0, 1).zeros()] * (OUTPUTS - len(held[0]))
            packed.fill(done // OUTPUTS, joined([*held, *padding]))
        return packed

    def _check(self, in_features: int) -> None:
        if in_features % self.layout.inputs:
            raise ModelError(
                f"{in_features} inputs cannot be cut into {self.name} blocks of "
                f"{self.layout.inputs}."
            )


BY_32 = "int8 by row and group of 32"
BY_256 = "int8 by row and group of 256"
