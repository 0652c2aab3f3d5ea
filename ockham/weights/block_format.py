"""The block types of GGUF files, held to the bit; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Bytes, Floats
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows
from ockham.core.registry import techniques
from ockham.core.seams import Arithmetic, Field, FillableLinear, Format, Layout, Values
from ockham.kernels.layouts import ROWS
from ockham.weights.block_shape import BlockShape
from ockham.weights.by_rows import ByRows, count, misfit, quantise, regrouped, with_zeros

MOST_EXPONENT = 252
"""The largest exponent byte of a block whose 4-bit floats, up to 6, fp32 holds. (255 is NaN.)"""

ROWS_WIDENED = 256
"""Rows that the plain product widens at a time."""


class BlockType(NamedTuple):
    """A block type of files: what a block takes there, and its reader, as `BlockFormat.read`."""

    nbytes: int
    read: Callable[[Bytes], BlockRows]


class BlockFormat(ByRows):
    """A format that takes over one of GGUF's block types as it is, and quantises nothing itself.

    `file_type` is the type's name in GGUF files, `file_bytes` what a block takes there; `also` are
    other types whose values it holds.
    """

    name: ClassVar[str]
    activations: ClassVar[str]
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    shape: ClassVar[BlockShape]
    file_type: ClassVar[str]
    file_bytes: ClassVar[int]
    also: ClassVar[Mapping[str, BlockType]] = {}

    @staticmethod
    def read(blocks: Bytes) -> BlockRows:
        """Blocks as a GGUF file has them, (rows, B, file_bytes)."""
        raise NotImplementedError

    @classmethod
    def file_types(cls) -> dict[str, BlockType]:
        """The types that it reads, by name."""
        return {cls.file_type: BlockType(cls.file_bytes, cls.read), **cls.also}

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        """Those of `BlockRows`."""
        shape, blocks = self.shape, in_features // self.shape.inputs
        if in_features % shape.inputs:
            raise ModelError(
                f"{in_features} inputs cannot be cut into {self.name} blocks of {shape.inputs}."
            )
        halves, groups = (blocks,), (blocks * shape.groups,)
        found = {
            "codes": Field("uint8", (in_features,), shape.bits),
            "scales": Field("uint8", halves, 8)
            if shape.scale != "half"
            else Field("float16", halves, 16),
        }
        if shape.minima:
            found["minima"] = Field("float16", halves, 16)
        if shape.group:
            found["group_scales"] = Field("int8" if shape.signed else "uint8", groups, 8)
        if shape.group and shape.minima:
            found["group_minima"] = Field("uint8", groups, 8)
        if shape.divisors:
            found["divisors"] = Field("float32", (1,), 32)
        return found

    def fault(self, rows: BlockRows) -> str | None:
        """What is wrong with rows, as a part of a sentence; None if nothing is."""
        if self.shape.scale != "half":
            scales: Bytes = rows.scales.view(np.uint8)
            if self.shape.scale == "exponent" and (scales > MOST_EXPONENT).any():
                return "NaN, or a scale too large for fp32, stands in an exponent"
            if self.shape.scale == "small" and (scales & np.uint8(127) == 127).any():
                return "NaN stands in a scale"
        return rows.fault()

    def encode(self, rows: Array) -> Values:
        formats: list[type[Format]] = [each.cls for each in techniques("format")]
        others = [
            each.name
            for each in formats
            if each.dtype is None and each.encode is not BlockFormat.encode
        ]
        raise ModelError(
            f"{self.name} holds what a GGUF file stores in it, and packs no other weights: leave "
            "quantization out, or say 'stored', to take every matrix as the file has it; "
            f"{', '.join(others[:-1])} and {others[-1]} pack weights anew."
        )

    def adopt(
        self,
        out_features: int,
        in_features: int,
        blocks: Iterable[BlockRows],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        Raises ModelError if they do not add up to the shape, or a scale is not finite.
        """
        packed = layout.blank(self, out_features, in_features)
        first = 0
        for rows in regrouped(
            self._checked(blocks, (out_features, in_features)), layout.multiple, with_zeros
        ):
            packed.fill(first, rows)
            first += count(rows)
        return packed

    def matmul(self, values: Values, x: Floats) -> Floats:
        """What csrc/kinds/blocks.h says, where a are a group's inputs as int8 (`quantise`).

        Integer sums are exact. An fma is done in float64, whose two roundings differ from one in
        about one case of 2^29.
        """
        columns, rows = x.shape[1] // self.shape.inputs, len(values["codes"])
        inputs, scale_x = quantise(x.reshape(len(x), columns, self.shape.inputs))
        a = np.ascontiguousarray(inputs.transpose(1, 0, 2), np.float64)  # (B, M, inputs)
        by_column = scale_x[..., 0].T[:, :, None]  # (B, M, 1)
        product = np.empty((len(x), rows), np.float32)
        for first in range(0, rows, ROWS_WIDENED):
            part = {name: each[first : first + ROWS_WIDENED] for name, each in values.items()}
            terms = self._terms(part, a, by_column)
            y = np.zeros((len(x), count(part)), np.float32)
            for column in range(columns):
                for total, scale in terms:
                    wide = total[column].astype(np.float64) * scale[column] + y
                    y = wide.astype(np.float32)
            product[:, first : first + count(part)] = y
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        """The values that the `gguf` package dequantises, to the bit."""
        shape, rows = self.shape, len(values["codes"])
        grouped = (rows, in_features // shape.inputs, shape.groups or 1, -1)
        scales = self._scales(values)[:, :, None, None]
        codes = self._meant(values).reshape(grouped)
        if shape.group:
            scales = scales * values["group_scales"].reshape(grouped).astype(np.float32)
        weights: Floats = scales * codes
        if shape.minima:
            minima = values["minima"].astype(np.float32)[:, :, None, None]
            if not shape.group:
                weights = weights + minima
            else:
                factors = values["group_minima"].reshape(grouped).astype(np.float32)
                weights = weights - minima * factors
        return weights.reshape(rows, in_features)

    def _checked(self, blocks: Iterable[BlockRows], shape: tuple[int, int]) -> Iterator[Values]:
        """The fields of each block of rows. Raises ModelError as `adopt` says."""
        done = 0
        for block in blocks:
            stop = done + len(block)
            if block.codes.shape[1] != shape[1] or stop > shape[0]:
                raise misfit(block.codes.shape, done, shape)
            fault = self.fault(block)
            if fault:
                raise ModelError(f"{fault} (rows {done} to {stop - 1}).")
            held = {field.name: getattr(block, field.name) for field in fields(block)}
            yield {name: array for name, array in held.items() if array is not None}
            done = stop
        if done != shape[0]:
            raise ModelError(f"only {done} of {shape[0]} rows were found.")

    def _scales(self, values: Values) -> Floats:
        """(rows, B)"""
        shape = self.shape
        if shape.scale == "exponent":
            return powers_of_two(values["scales"].view(np.uint8))
        if shape.scale == "small":
            small: Floats = values["scales"].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            halved: Floats = small * np.float32(0.5)
            if shape.divisors:
                halved /= values["divisors"].astype(np.float32)
            return halved
        halves: Floats = values["scales"].astype(np.float32)
        return halves * np.float32(2.0**-shape.halvings)

    def _meant(self, values: Values) -> Floats:
        """What codes stand for, as integers: (rows, K)."""
        if self.shape.levels:
            levels: Floats = np.array(self.shape.levels, np.float32)
            return levels[values["codes"].astype(np.intp)]
        codes: Floats = values["codes"].astype(np.float32)
        return codes - np.float32(self.shape.zero)

    def _terms(
        self, values: Values, a: npt.NDArray[np.float64], scale_x: Floats
    ) -> list[tuple[Floats, Floats]]:
        """Factors (B, M, rows), or (B, M, 1), of what is added to y for each block in turn."""
        shape, columns, rows = self.shape, len(a), count(values)

        def by_block(array: Array) -> npt.NDArray[np.float64]:
            """(rows, B * n) as (B, n, rows)."""
            wide = array.astype(np.float64).reshape(rows, columns, -1)
            return wide.transpose(1, 2, 0)

        codes = by_block(self._meant(values))
        if shape.group:
            codes *= np.repeat(by_block(values["group_scales"]), shape.group, axis=1)
        d = by_block(self._scales(values)).astype(np.float32)
        terms = [((a @ codes).astype(np.float32), scale_x * d)]
        if shape.minima:
            m = by_block(values["minima"]).astype(np.float32)
            if not shape.group:
                total = a.sum(axis=2, keepdims=True).astype(np.float32) * scale_x
                terms.append((total, np.broadcast_to(m, (columns, 1, rows))))
            else:
                sums = a.reshape(columns, -1, shape.groups, shape.group).sum(axis=3)
                total = (sums @ by_block(values["group_minima"])).astype(np.float32)
                terms.append((total, -scale_x * m))
        return terms


def powers_of_two(exponents: Bytes) -> Floats:
    """2 ** (e - 128), of which the two smallest are no normal floats. (OCP Microscaling Formats
    v1.0, 5.4.1: E8M0, whose scale is twice that.)"""
    e = exponents.astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (e - 1) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


BY_16 = "int8 by row and group of 16"
BY_32 = "int8 by row and group of 32"
BY_256 = "int8 by row and group of 256"
