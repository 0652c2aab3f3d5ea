"""Weights in 4 bits with a scale for each group of inputs; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import register
from ockham.core.seams import Array, Floats
from ockham.kernels.memory import allocate_array
from ockham.kernels.native import core, packing_pool
from ockham.weights.adopting import adopted_panels
from ockham.weights.panels import OUTPUTS, from_panels, panels, quantise, row_panels, to_panels

GROUPS = (32, 64, 128)
"""The inputs that may share a scale."""

DIVISORS = (8.0, 7.0, 7.4, 7.7, 8.3, 8.7, 9.2, 10.0)
"""A group's scale is -extreme / d for the best of these d: see `choose_scales`."""

PANELS_AT_ONCE = 16
"""Panels that the plain product widens at a time."""

SYMMETRIC_ZERO = 8
"""The code that stands for zero where a matrix has no zero points."""


class Int4Linear:
    """4-bit codes: w = (code - zero) * scale.

    With P panels of 16 outputs (padded with zeros), K inputs and G groups of them:
    `arrays["weight"]`: uint8 (P, K / 8, 16, 4), byte i of a unit holding the codes of its inputs i
    (low half) and 4 + i (high half); `arrays["scale"]`: float16 (P, G, 16); `arrays["zero"]`, only
    where a checkpoint has zero points: uint8 (P, G, 16). Without it every zero is 8.
    """

    format = "int4"

    def __init__(
        self,
        out_features: int,
        in_features: int,
        group: int,
        weight: npt.NDArray[np.uint8],
        scale: npt.NDArray[np.float16],
        zero: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.out_features, self.in_features, self.group = out_features, in_features, group
        self.weight, self.scale, self.zero = weight, scale, zero
        self.arrays: dict[str, Array] = {"weight": weight, "scale": scale}
        if zero is not None:
            self.arrays["zero"] = zero

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def matmul(self, x: Floats) -> Floats:
        """For each group in turn: y = fma(float(sum of a * (code - zero)), scale_x * scale_w, y),
        where a are the group's inputs as int8 (`quantise`).

        The sums are exact in fp32. The fma is done in float64, whose two roundings differ from one
        in about one case of 2^29.
        """
        groups = self.in_features // self.group
        values, scale_x = quantise(x.reshape(len(x), groups, self.group))
        by_group = np.ascontiguousarray(values.transpose(1, 0, 2))  # (G, M, group)
        product = np.empty((len(x), len(self.weight) * OUTPUTS), np.float32)
        for first in range(0, len(self.weight), PANELS_AT_ONCE):
            part = slice(first, first + PANELS_AT_ONCE)
            codes, scale_w = self._widened(part)  # (outputs, G, group), (outputs, G)
            sums = by_group @ codes.transpose(1, 2, 0)  # (G, M, outputs)
            y = np.zeros(sums.shape[1:], np.float64)
            for g in range(groups):
                both = scale_x[:, g] * scale_w[:, g]
                y = (y + sums[g].astype(np.float64) * both).astype(np.float32).astype(np.float64)
            product[:, first * OUTPUTS : first * OUTPUTS + len(codes)] = y
        return product[:, : self.out_features]

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        panel, lane = ids // OUTPUTS, ids % OUTPUTS
        units = self.weight[panel, :, lane]  # (len(ids), K / 8, 4)
        codes = np.stack([units & 15, units >> 4], axis=2).reshape(len(ids), -1, self.group)
        zero = SYMMETRIC_ZERO if self.zero is None else self.zero[panel, :, lane][:, :, None]
        scale = self.scale[panel, :, lane].astype(np.float32)
        rows: Floats = (codes.astype(np.float32) - zero) * scale[:, :, None]
        return rows.reshape(len(ids), self.in_features).astype(np.float32)

    def fill(
        self,
        panel: int,
        codes: npt.NDArray[np.uint8],
        scale: npt.NDArray[np.float16],
        zero: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Store outputs from panel `panel` on: whole panels of rows of codes (rows, K) below 16,
        their scales and zero points (rows, G)."""
        halves = codes.reshape(len(codes), -1, 2, 4)
        stored = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1)
        part = slice(panel, panel + len(codes) // OUTPUTS)
        self.weight[part] = to_panels(stored, 4)
        self.scale[part] = to_panels(scale, 1)[..., 0]
        if self.zero is not None and zero is not None:
            self.zero[part] = to_panels(zero, 1)[..., 0]

    def _widened(self, part: slice) -> tuple[Floats, Floats]:
        """The panels' codes minus zeros (outputs, G, group), and their scales (outputs, G)."""
        stored = self.weight[part]
        both = from_panels(stored).reshape(len(stored) * OUTPUTS, -1, 4)
        codes = np.stack([both & 15, both >> 4], axis=2).reshape(len(both), -1, self.group)
        scale = from_panels(self.scale[part][..., None]).astype(np.float32)
        wide = codes.astype(np.float32)
        if self.zero is None:
            return wide - np.float32(SYMMETRIC_ZERO), scale
        return wide - from_panels(self.zero[part][..., None])[:, :, None], scale


def choose_scales(values: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Codes (..., group) and scales (...,) of groups (..., group) of weights.

    `extreme` is a group's weight of largest magnitude, the first of equals. Of the scales
    -extreme / d rounded to fp16 (d = 8 puts it exactly at code 0, less leaves room, more clips it)
    that with the smallest sum of squared errors is taken, the first of equals. The order of that
    sum is fixed (16 lanes, then halves of them), so that the compiled packer chooses the same.
    """
    index = np.abs(values).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(values, index, axis=-1)
    best_codes = np.zeros(values.shape, np.float32)
    best_scale = np.zeros(extreme.shape, np.float16)
    best_error = np.full(extreme.shape, np.inf, np.float32)
    for divisor in DIVISORS:
        scale = (extreme / np.float32(-divisor)).astype(np.float16)
        wide = scale.astype(np.float32)
        inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
        codes = np.clip(np.rint(values * inverse), -8, 7)
        squares = np.square(values - codes * wide)
        lanes = np.zeros((*values.shape[:-1], 16), np.float32)
        for start in range(0, values.shape[-1], 16):
            lanes = lanes + squares[..., start : start + 16]
        for half in (8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        better = lanes < best_error
        best_error = np.where(better, lanes, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better, codes, best_codes)
    return (best_codes + SYMMETRIC_ZERO).astype(np.uint8), best_scale[..., 0]


@register("format", "int4", exact=False)
class Int4:
    """Weights in 4 bits by groups of inputs, inputs in int8 by the same groups (w4a8).

    Saves almost three quarters of bf16's bytes: what decoding is bound by. Each group of 32, 64 or
    128 inputs has an fp16 scale, searched for the smallest squared error; sums within a group are
    exact integers, and groups are added in fp32 in order.
    """

    name: ClassVar[str] = "int4"

    def __init__(self, group: int = 64) -> None:
        if group not in GROUPS:
            raise ConfigError(f"int4 has groups of {GROUPS} inputs, not of {group!r}.")
        self.group = group
        self.activations = f"int8 by row and group of {group}"

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        self._check(in_features)
        lanes = panels(out_features) * OUTPUTS
        return lanes * in_features // 2 + 2 * lanes * (in_features // self.group)

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> Int4 | None:
        """4-bit codes whose scales are fp16 numbers, in any group that is a multiple of ours."""
        fitting = [g for g in GROUPS if encoding.group % g == 0 and in_features % g == 0]
        if encoding.bits != 4 or not encoding.half_scales or not fitting:
            return None
        return cls(max(fitting))

    def adopted_bytes(self, out_features: int, in_features: int, encoding: Encoding) -> int:
        zeros = panels(out_features) * OUTPUTS * (in_features // self.group) * encoding.zeros
        return self.packed_bytes(out_features, in_features) + zeros

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
    ) -> Int4Linear:
        """Larger groups are cut into this format's, which repeats their scales."""
        packed = self.empty(out_features, in_features, encoding.zeros)
        for panel, rows in adopted_panels(blocks, out_features, in_features, encoding):
            cut = rows.regrouped(self.group)
            scale = cut.scales.astype(np.float16)
            packed.fill(panel, cut.codes, scale, cut.zeros if encoding.zeros else None)
        return packed

    def empty(self, out_features: int, in_features: int, zeros: bool = False) -> Int4Linear:
        """A matrix of zeros, to be filled; with zero points where asked."""
        self._check(in_features)
        count, groups = panels(out_features), in_features // self.group
        return Int4Linear(
            out_features,
            in_features,
            self.group,
            allocate_array((count, in_features // 8, OUTPUTS, 4), np.uint8),  # type: ignore[arg-type]
            allocate_array((count, groups, OUTPUTS), np.float16),  # type: ignore[arg-type]
            allocate_array((count, groups, OUTPUTS), np.uint8) if zeros else None,  # type: ignore[arg-type]
        )

    def _check(self, in_features: int) -> None:
        if in_features % self.group:
            raise ModelError(
                f"{in_features} inputs cannot be cut into groups of {self.group}: choose another "
                "group, or int8."
            )

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Int4Linear:
        """Scales are searched by `choose_scales`. Refuses weights whose scale fp16 cannot hold."""
        packed = self.empty(out_features, in_features)
        for panel, rows in row_panels(blocks, out_features, in_features):
            part = slice(panel, panel + len(rows) // OUTPUTS)
            if np.abs(rows).max() >= 65504 * min(DIVISORS):
                raise ModelError("a weight is too large for the fp16 scale of its group.")
            if core is None:
                codes, scale = choose_scales(rows.reshape(len(rows), -1, self.group))
                packed.fill(panel, codes.reshape(len(rows), -1), scale)
            else:
                core.pack_int4(
                    packing_pool(),
                    core.detect(),
                    rows,
                    self.group,
                    packed.weight[part].reshape(-1),
                    packed.scale[part].reshape(-1).view(np.uint16),
                )
        return packed
