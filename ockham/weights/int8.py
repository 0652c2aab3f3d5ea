"""Weights in 8 bits with a scale for each output; inputs quantised to 8 bits as they come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.errors import ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import register
from ockham.core.seams import Array, Floats
from ockham.kernels.memory import allocate_array
from ockham.kernels.native import core, packing_pool
from ockham.weights.adopting import adopted_panels
from ockham.weights.panels import OUTPUTS, from_panels, panels, quantise, row_panels, to_panels

MOST_INPUTS = 65536
"""Of more products of 8-bit numbers the sum could leave 32 bits."""

PANELS_AT_ONCE = 32
"""Panels that the plain product widens at a time."""


class Int8Linear:
    """`arrays["weight"]`: uint8 (P, ceil(K / 4), 16, 4), the weight plus 128; `arrays["scale"]`:
    float32 (16 P,), one for each output. P panels of 16 outputs, padded with zeros."""

    format = "int8"

    def __init__(
        self,
        out_features: int,
        in_features: int,
        weight: npt.NDArray[np.uint8],
        scale: Floats,
    ) -> None:
        self.out_features, self.in_features = out_features, in_features
        self.weight, self.scale = weight, scale
        self.arrays: dict[str, Array] = {"weight": weight, "scale": scale}

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def matmul(self, x: Floats) -> Floats:
        """a = the inputs of a row as int8 (`quantise`); float(sum of a * w) * (scale_x * scale_w).

        The sums are exact, here in float64, so that every order of adding gives the same result.
        """
        values, scale_x = quantise(x)
        wide = values.astype(np.float64)
        product = np.empty((len(x), len(self.scale)), np.float32)
        for first in range(0, len(self.weight), PANELS_AT_ONCE):
            block = self._codes(self.weight[first : first + PANELS_AT_ONCE]).astype(np.float64)
            start, stop = first * OUTPUTS, first * OUTPUTS + len(block)
            sums = (wide @ block.T).astype(np.float32)
            product[:, start:stop] = sums * (scale_x * self.scale[start:stop])
        return product[:, : self.out_features]

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        units = self.weight[ids // OUTPUTS, :, ids % OUTPUTS]  # (len(ids), units, 4)
        codes = units.reshape(len(ids), -1)[:, : self.in_features].astype(np.float32) - 128
        rows: Floats = codes * self.scale[ids, None]
        return rows

    def fill(self, panel: int, codes: npt.NDArray[np.int8], scale: Floats) -> None:
        """Store outputs from panel `panel` on: whole panels of rows of codes and their scales."""
        padded = np.pad(codes, ((0, 0), (0, -self.in_features % 4)))
        count = len(codes) // OUTPUTS
        stored = padded.view(np.uint8) ^ 0x80  # plus 128
        self.weight[panel : panel + count] = to_panels(stored, 4)
        self.scale[panel * OUTPUTS : panel * OUTPUTS + len(scale)] = scale

    def _codes(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
        codes = from_panels(block)[:, : self.in_features].astype(np.int16)
        return codes - np.int16(128)


@register("format", "int8", exact=False)
class Int8:
    """Weights in int8 with a scale by output, inputs in int8 with a scale by row (w8a8).

    Saves half of bf16's bytes, and products run on integer units at twice bf16's rate. Both sides
    are rounded to 255 levels between plus and minus their largest magnitude; sums are exact.
    """

    name: ClassVar[str] = "int8"
    activations: ClassVar[str] = "int8 by row"

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        self._check(in_features)
        return panels(out_features) * OUTPUTS * (-(-in_features // 4) * 4 + 4)

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> Int8 | None:
        """Codes of up to 8 bits around a fixed zero, with one scale of any precision by output."""
        one_scale = encoding.group == in_features <= MOST_INPUTS
        return cls() if one_scale and encoding.bits <= 8 and not encoding.zeros else None

    def adopted_bytes(self, out_features: int, in_features: int, encoding: Encoding) -> int:
        return self.packed_bytes(out_features, in_features)

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
    ) -> Int8Linear:
        packed = self.empty(out_features, in_features)
        middle = np.int16(1 << (encoding.bits - 1))
        for panel, rows in adopted_panels(blocks, out_features, in_features, encoding):
            codes = (rows.codes.astype(np.int16) - middle).astype(np.int8)
            packed.fill(panel, codes, rows.scales[:, 0].astype(np.float32))
        return packed

    def empty(self, out_features: int, in_features: int) -> Int8Linear:
        """A matrix of zeros, to be filled."""
        self._check(in_features)
        weight = allocate_array((panels(out_features), -(-in_features // 4), OUTPUTS, 4), np.uint8)
        scale = allocate_array((panels(out_features) * OUTPUTS,), np.float32)
        return Int8Linear(out_features, in_features, weight, scale)  # type: ignore[arg-type]

    def _check(self, in_features: int) -> None:
        if in_features > MOST_INPUTS:
            raise ModelError(
                f"int8 takes at most {MOST_INPUTS} inputs, not {in_features}: use bf16."
            )

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Int8Linear:
        """The scale of an output is its largest magnitude over 127."""
        packed = self.empty(out_features, in_features)
        for panel, rows in row_panels(blocks, out_features, in_features):
            if core is None:
                codes, scale = quantise(rows)
                packed.fill(panel, codes.astype(np.int8), scale[:, 0])
            else:
                part = slice(panel, panel + len(rows) // OUTPUTS)
                outputs = slice(panel * OUTPUTS, panel * OUTPUTS + len(rows))
                core.pack_int8(
                    packing_pool(),
                    core.detect(),
                    rows,
                    packed.weight[part].reshape(-1),
                    packed.scale[outputs],
                )
        return packed
