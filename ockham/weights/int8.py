"""Weights in 8 bits with a scale for each group of inputs; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, FillableLinear, Layout, Values
from ockham.kernels.layouts import ROWS
from ockham.kernels.native import core
from ockham.weights.adopting import adopted
from ockham.weights.by_rows import ByRows, native_codes, product_by_group
from ockham.weights.scales import check_scales

GROUP = 64
"""Inputs that share a scale, and that are rotated together."""


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
class Int8(ByRows):
    """Weights in int8 and inputs in int8, both by groups of 64 inputs that are rotated (w8a8).

    Takes 8.25 bits a weight, half of bf16's bytes, and products run on integer units at twice
    bf16's rate. A Hadamard rotation of each group (QuaRot, arXiv:2404.00456) shares large values
    out, so that few huge activations cost no precision. Sums within a group are exact integers, and
    groups are added in fp32 in order.

    Of K inputs in G groups, the last of which is padded with zeros, `codes`: int8 (rows, 64 G), and
    `scales`: float16 (rows, G); the codes are those of the rotated weights (`hadamard`), and
    products rotate their inputs. Or, where a checkpoint's own codes are held (a group of 0),
    `scales`: float32 (rows, 1), and nothing is rotated. w = code * scale."""

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

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        groups = -(-in_features // GROUP)
        scales = Field("float16", (groups,), 16) if self.group else Field("float32", (1,), 32)
        return {"codes": Field("int8", (groups * GROUP,), 8), "scales": scales}

    def encode(self, rows: Array) -> Values:
        """As `rotated_codes` says. Refuses weights whose scale fp16 cannot hold."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        check_scales(wide, 1.0)  # rotated, a weight may be up to 8 times as large
        if core is None:
            codes, scales = rotated_codes(wide)
            return {"codes": codes, "scales": scales}
        groups = -(-wide.shape[1] // GROUP)
        codes = np.empty((len(wide), groups * GROUP), np.int8)
        return native_codes(self.name, GROUP, wide, codes)

    def matmul(self, values: Values, x: Floats) -> Floats:
        """See `product_by_group`. Inputs are rotated where the weights are."""
        groups = grouped(x)
        return product_by_group(hadamard(groups) if self.group else groups, values, self._widened)

    def decode(self, values: Values, in_features: int) -> Floats:
        codes, scale = self._widened(values)
        weights = codes * scale[:, :, None]
        if self.group:
            weights = hadamard(weights)
        return np.ascontiguousarray(weights.reshape(len(codes), -1)[:, :in_features])

    def _widened(self, values: Values) -> tuple[Floats, Floats]:
        """Codes (rows, G, 64) and scales (rows, G)."""
        codes = values["codes"].reshape(len(values["codes"]), -1, GROUP).astype(np.float32)
        scale: Floats = values["scales"].astype(np.float32)
        return codes, np.broadcast_to(scale, codes.shape[:2])

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> Int8 | None:
        """Codes of up to 8 bits around a fixed zero, with one scale of any precision by output."""
        one_scale = encoding.group == in_features
        return cls(0) if one_scale and encoding.bits <= 8 and not encoding.zeros else None

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        packed = layout.blank(self, out_features, in_features)
        middle = np.int16(1 << (encoding.bits - 1))
        first = 0
        for rows in adopted(blocks, (out_features, in_features), encoding, layout.multiple):
            codes = (rows.codes.astype(np.int16) - middle).astype(np.int8)
            padded = np.pad(codes, ((0, 0), (0, -in_features % GROUP)))
            packed.fill(first, {"codes": padded, "scales": rows.scales.astype(np.float32)})
            first += len(rows)
        return packed
