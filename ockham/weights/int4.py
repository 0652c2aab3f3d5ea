"""Weights in 4 bits with a scale for each group of inputs; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Linear, Role
from ockham.kernels.memory import allocate_array
from ockham.kernels.native import core, packing_pool
from ockham.weights.adopting import adopted_panels
from ockham.weights.gptq import MIDDLE, calibrated_codes
from ockham.weights.panels import (
    OUTPUTS,
    add_group,
    from_panels,
    panels,
    quantise,
    row_panels,
    to_panels,
)
from ockham.weights.scales import DIVISORS, check_scales, choose_scales

GROUPS = (32, 64, 128)
"""The inputs that may share a scale."""

NARROW = 1024
"""Inputs below which every matrix takes five bits: small models lose more, and weigh little."""

FIVE_BIT_GROUP = 32

PANELS_AT_ONCE = 16
"""Panels that the plain product widens at a time."""

SYMMETRIC_ZERO = MIDDLE
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

        The sums are exact in fp32.
        """
        groups = self.in_features // self.group
        values, scale_x = quantise(x.reshape(len(x), groups, self.group))
        by_group = np.ascontiguousarray(values.transpose(1, 0, 2))  # (G, M, group)
        product = np.empty((len(x), len(self.weight) * OUTPUTS), np.float32)
        for first in range(0, len(self.weight), PANELS_AT_ONCE):
            part = slice(first, first + PANELS_AT_ONCE)
            codes, scale_w = self._widened(part)  # (outputs, G, group), (outputs, G)
            sums = by_group @ codes.transpose(1, 2, 0)  # (G, M, outputs)
            y = np.zeros(sums.shape[1:], np.float32)
            for g in range(groups):
                y = add_group(y, sums[g], scale_x[:, g] * scale_w[:, g])
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


class Int4Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group` is how many inputs share a scale. Without one it is 64, and some matrices get 5 bits
    (`Int4.beside`)."""

    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.group not in GROUPS:
            raise ConfigError(f"int4 has groups of {GROUPS} inputs, not of {self.group!r}.")


@register("format", "int4", exact=False)
class Int4:
    """Weights in 4 bits by groups of inputs, inputs in int8 by the same groups (w4a8).

    Saves almost three quarters of bf16's bytes: what decoding is bound by. Each group of 32, 64 or
    128 inputs has an fp16 scale, searched for the smallest squared error; sums within a group are
    exact integers, and groups are added in fp32 in order.
    """

    name: ClassVar[str] = "int4"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None

    Options: ClassVar[type[msgspec.Struct]] = Int4Options
    forms: ClassVar[tuple[str, ...]] = tuple(f"int4:{group}" for group in GROUPS)

    def __init__(self, options: Int4Options | None = None) -> None:
        group = None if options is None else options.group
        self.mixed = group is None
        self.group = group = group or 64
        self.activations = f"int8 by row and group of {group}"

    @classmethod
    def of(cls, group: int) -> Int4:
        """The format with this group and nothing else beside it."""
        return cls(Int4Options(group))

    @classmethod
    def of_group(cls, group: int) -> Int4:
        if group not in GROUPS:
            raise ValueError(f"its group is {group!r}")
        return cls.of(group)

    @classmethod
    def group_of(cls, linear: Linear) -> int:
        return linear.in_features // int(linear.arrays["scale"].shape[1])

    def beside(self, role: Role, in_features: int) -> str | None:
        """int8 takes embeddings, head and routers. Unless a group was named, 5 bits (q5_0) take all
        but the large matrices of feed-forward layers, and those too in a narrow model."""
        if role in ("embedding", "head", "router"):
            return "int8"
        if not self.mixed or (
            role == "gate_up" and in_features >= NARROW and in_features % self.group == 0
        ):
            return None
        return "q5_0" if in_features % FIVE_BIT_GROUP == 0 else "int8"

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
        return cls.of(max(fitting))

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

    def alone(self) -> Int4:
        """What is fitted needs no fifth bit."""
        return self.of(self.group)

    def fit(self, rows: Floats, moments: Floats) -> Int4Linear:
        """The codes of `gptq.calibrated_codes`."""
        outputs, inputs = rows.shape
        codes, scale = calibrated_codes(rows, moments, self.group)
        packed = self.empty(outputs, inputs)
        whole = panels(outputs) * OUTPUTS
        padded_codes = np.full((whole, inputs), SYMMETRIC_ZERO, np.uint8)
        padded_scale = np.zeros((whole, inputs // self.group), np.float16)
        padded_codes[:outputs], padded_scale[:outputs] = codes, scale
        packed.fill(0, padded_codes, padded_scale)
        return packed

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
            check_scales(rows, min(DIVISORS[SYMMETRIC_ZERO]))
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
