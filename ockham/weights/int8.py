"""Weights in 8 bits with a scale for each group of inputs; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Linear
from ockham.kernels.memory import allocate_array
from ockham.kernels.native import core, packing_pool
from ockham.weights.adopting import adopted_panels
from ockham.weights.panels import (
    OUTPUTS,
    add_group,
    from_panels,
    panels,
    quantise,
    row_panels,
    to_panels,
)
from ockham.weights.scales import check_scales

GROUP = 64
"""Inputs that share a scale, and that are rotated together."""

PANELS_AT_ONCE = 16
"""Panels that the plain product widens at a time."""


class Int8Linear:
    """8-bit codes: w = code * scale, by groups of 64 inputs; the last group is padded with zeros.

    With P panels of 16 outputs (padded with zeros) and G groups: `arrays["weight"]`: uint8
    (P, 16 G, 16, 4), the code plus 128. `arrays["scale"]`: float16 (P, G, 16); the codes are then
    those of the rotated weights (`hadamard`), and products rotate their inputs. Or, where a
    checkpoint's own codes are held: float32 (16 P,), one for each output, and nothing is rotated.
    """

    format = "int8"

    def __init__(
        self,
        out_features: int,
        in_features: int,
        weight: npt.NDArray[np.uint8],
        scale: npt.NDArray[np.float16] | Floats,
    ) -> None:
        self.out_features, self.in_features = out_features, in_features
        self.weight, self.scale = weight, scale
        self.rotated = scale.ndim == 3
        self.arrays: dict[str, Array] = {"weight": weight, "scale": scale}

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def matmul(self, x: Floats) -> Floats:
        """For each group in turn: y = fma(float(sum of a * code), scale_x * scale_w, y), where a
        are the group's inputs, rotated where the weights are, as int8 (`quantise`).

        The sums are exact in fp32.
        """
        groups = grouped(x)
        values, scale_x = quantise(hadamard(groups) if self.rotated else groups)
        by_group = np.ascontiguousarray(values.transpose(1, 0, 2))  # (G, M, 64)
        product = np.empty((len(x), len(self.weight) * OUTPUTS), np.float32)
        for first in range(0, len(self.weight), PANELS_AT_ONCE):
            part = slice(first, first + PANELS_AT_ONCE)
            codes, scale_w = self._widened(part)  # (outputs, G, 64), (outputs, G)
            y = np.zeros((len(x), len(codes)), np.float32)
            for g in range(by_group.shape[0]):
                y = add_group(y, by_group[g] @ codes[:, g].T, scale_x[:, g] * scale_w[:, g])
            product[:, first * OUTPUTS : first * OUTPUTS + len(codes)] = y
        return product[:, : self.out_features]

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        panel, lane = ids // OUTPUTS, ids % OUTPUTS
        units = self.weight[panel, :, lane]  # (len(ids), 16 G, 4)
        codes = units.reshape(len(ids), -1, GROUP).astype(np.float32) - 128
        if self.rotated:
            scale = self.scale[panel, :, lane].astype(np.float32)
            values = hadamard(codes * scale[:, :, None])
        else:
            values = codes * self.scale[ids, None, None]
        rows: Floats = values.reshape(len(ids), -1)[:, : self.in_features]
        return np.ascontiguousarray(rows)

    def fill(
        self,
        panel: int,
        codes: npt.NDArray[np.int8],
        scale: npt.NDArray[np.float16] | Floats,
    ) -> None:
        """Store outputs from panel `panel` on: whole panels of rows of codes (rows, K), or
        (rows, 64 G), and their scales: (rows, G) of groups, or (rows,)."""
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % GROUP)))
        part = slice(panel, panel + len(codes) // OUTPUTS)
        self.weight[part] = to_panels(padded.view(np.uint8) ^ 0x80, 4)  # plus 128
        if self.rotated:
            self.scale[part] = to_panels(scale, 1)[..., 0]
        else:
            self.scale[panel * OUTPUTS : panel * OUTPUTS + len(scale)] = scale

    def _widened(self, part: slice) -> tuple[Floats, Floats]:
        """The panels' codes (outputs, G, 64), and their scales (outputs, G) or (outputs, 1)."""
        stored = from_panels(self.weight[part])
        codes = stored.reshape(len(stored), -1, GROUP).astype(np.float32) - np.float32(128)
        if self.rotated:
            return codes, from_panels(self.scale[part][..., None]).astype(np.float32)
        start = part.start * OUTPUTS
        scale: Floats = self.scale[start : start + len(stored)].astype(np.float32)
        return codes, np.repeat(scale[:, None], codes.shape[1], 1)


def grouped(values: Floats) -> Floats:
    """(M, K) as groups (M, G, 64), with zeros where the last has no inputs."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % GROUP))).reshape(len(values), -1, GROUP)


def hadamard(groups: Floats) -> Floats:
    """Groups (..., 64) times the orthonormal Hadamard matrix of 64, which is its own inverse.

    Entry (i, k) is 1/8, with the sign of -1 to the number of bits that i and k share. From the
    lowest bit of a place to the highest, pairs (a, b) that differ in it become (a + b, a - b): the
    order in which the kernels add.
    """
    shape = groups.shape
    half = 1
    while half < GROUP:
        pairs = groups.reshape(*shape[:-1], GROUP // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        groups = np.stack([a + b, a - b], axis=-2).reshape(shape)
        half *= 2
    return groups * np.float32(0.125)


def rotated_codes(rows: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Codes (rows, 64 G) and scales (rows, G) of weights (rows, K): a group is rotated, and its
    scale is its largest magnitude over 127 as fp16."""
    groups = hadamard(grouped(rows))
    scale = (np.abs(groups).max(axis=-1) / np.float32(127)).astype(np.float16)
    wide = scale.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    codes = np.clip(np.rint(groups * inverse[:, :, None]), -127, 127).astype(np.int8)
    return codes.reshape(len(rows), -1), scale


@register("format", "int8", exact=False)
class Int8:
    """Weights in int8 and inputs in int8, both by groups of 64 inputs that are rotated (w8a8).

    Takes 8.25 bits a weight, half of bf16's bytes, and products run on integer units at twice
    bf16's rate. A Hadamard rotation of each group (QuaRot, arXiv:2404.00456) shares large values
    out, so that few huge activations cost no precision. Sums within a group are exact integers, and
    groups are added in fp32 in order.
    """

    name: ClassVar[str] = "int8"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = "int8 by row and group of 64"

    def __init__(self, group: int = GROUP) -> None:
        """With a group of 0: one scale for each output and nothing rotated, to hold what a
        checkpoint stores."""
        self.group = group

    @classmethod
    def of_group(cls, group: int) -> Int8:
        if group not in (0, GROUP):
            raise ValueError(f"its group is {group!r}")
        return cls(group)

    @classmethod
    def group_of(cls, linear: Linear) -> int:
        return GROUP if linear.arrays["scale"].ndim == 3 else 0

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        groups = -(-in_features // GROUP)
        return panels(out_features) * OUTPUTS * (groups * GROUP + (2 * groups if self.group else 4))

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> Int8 | None:
        """Codes of up to 8 bits around a fixed zero, with one scale of any precision by output."""
        one_scale = encoding.group == in_features
        return cls(0) if one_scale and encoding.bits <= 8 and not encoding.zeros else None

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

    def empty(self, out_features: int, in_features: int, zeros: bool = False) -> Int8Linear:
        """A matrix of zeros, to be filled."""
        count, groups = panels(out_features), -(-in_features // GROUP)
        weight = allocate_array((count, groups * GROUP // 4, OUTPUTS, 4), np.uint8)
        scale = (
            allocate_array((count, groups, OUTPUTS), np.float16)
            if self.group
            else allocate_array((count * OUTPUTS,), np.float32)
        )
        return Int8Linear(out_features, in_features, weight, scale)  # type: ignore[arg-type]

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Int8Linear:
        """As `rotated_codes` says. Refuses weights whose scale fp16 cannot hold."""
        packed = self.empty(out_features, in_features)
        for panel, rows in row_panels(blocks, out_features, in_features):
            check_scales(rows, 1.0)  # rotated, a weight may be up to 8 times as large
            if core is None:
                packed.fill(panel, *rotated_codes(rows))
            else:
                part = slice(panel, panel + len(rows) // OUTPUTS)
                core.pack_int8(
                    packing_pool(),
                    core.detect(),
                    rows,
                    packed.weight[part].reshape(-1),
                    packed.scale[part].reshape(-1).view(np.uint16),
                )
        return packed
