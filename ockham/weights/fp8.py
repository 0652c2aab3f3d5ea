"""Weights as floats of 8 bits (E4M3), with a scale for each row or group of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import ml_dtypes
import msgspec
import numpy as np

from ockham.core.arrays import Array, Bytes, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, FillableLinear, Layout, Values
from ockham.kernels.layouts import ROWS
from ockham.weights.by_rows import ROWS_WIDENED, ByRows, count, cut, misfit, regrouped, with_zeros

LARGEST = np.float32(448.0)
"""The largest number of E4M3."""

MOST_SCALE = 2.0**119
"""Scales from here on are refused: fp32 could not hold their largest weights."""


class Fp8Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group` is how many inputs share a scale, a multiple of 4; 0 for a scale of the whole row."""

    group: int = 0

    def __post_init__(self) -> None:
        if self.group < 0 or self.group % 4:
            raise ConfigError(
                f"fp8 has groups of a multiple of 4 inputs, or 0 for rows, not {self.group!r}."
            )


@register("format", "fp8", exact=False)
class Fp8(ByRows):
    """Weights as 8-bit floats (E4M3: 4 bits of exponent, 3 of mantissa, no infinity), inputs in
    fp32 (FP8 Formats for Deep Learning, Micikevicius et al. 2022, arXiv:2209.05433).

    Checkpoints that are stored so keep their bits: a weight is the code's value times the scale of
    its row and group, rounded to fp32, and products have the bits of `fp32` with those weights, in
    a quarter of its bytes. Scales of blocks are repeated for each row. Other weights are rounded to
    it with a scale for each row, or group (`fp8:128`), whose largest weight becomes 448.

    Of K inputs in G groups, `codes`: uint8 (rows, K), `scales`: float32 (rows, G); the last group
    may be shorter.
    """

    name: ClassVar[str] = "fp8"
    arithmetic: ClassVar[Arithmetic] = "fp32"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = "float32"

    Options: ClassVar[type[msgspec.Struct]] = Fp8Options
    forms: ClassVar[tuple[str, ...]] = ("fp8:128",)

    def __init__(self, options: Fp8Options | None = None) -> None:
        self.group = (options or Fp8Options()).group

    @classmethod
    def of_group(cls, group: int) -> Fp8:
        if type(group) is not int or group < 0 or group % 4:
            raise ValueError(f"its group is {group!r}")
        return cls(Fp8Options(group))

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        groups = -(-in_features // self.group) if self.group else 1
        return {
            "codes": Field("uint8", (in_features,), 8),
            "scales": Field("float32", (groups,), 32),
        }

    def encode(self, rows: Array) -> Values:
        """Each weight over the scale of its group, rounded to the nearest, ties to even. A scale is
        the largest magnitude of a group over 448."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        starts = np.arange(0, wide.shape[1], self.group or wide.shape[1])
        most: Floats = np.maximum.reduceat(np.abs(wide), starts, axis=1)
        scales: Floats = most / LARGEST
        if (scales >= MOST_SCALE).any():
            raise ModelError("a weight is too large for the scale of its group.")
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
        if not np.isfinite(inverse).all():  # of a group of subnormals
            inverse = np.where(np.isfinite(inverse), inverse, 0)
        near = np.clip(wide * self._by_input(inverse, wide.shape[1]), -LARGEST, LARGEST)
        codes = near.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return {"codes": codes, "scales": scales}

    def adopt(
        self,
        out_features: int,
        in_features: int,
        blocks: Iterable[BlockRows],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value. Their
        `scales` are float32 (rows, G).

        Raises ModelError if they do not add up to the shape, a code is NaN, or a scale is not
        finite, or so large that fp32 does not hold its weights.
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
        product = np.empty((len(x), count(values)), np.float32)
        for first in range(0, count(values), ROWS_WIDENED):
            weights = self.decode(cut(values, first, first + ROWS_WIDENED), x.shape[1])
            np.matmul(x, weights.T, out=product[:, first : first + len(weights)])
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        codes: Bytes = np.ascontiguousarray(values["codes"]).view(np.uint8)
        scales: Floats = values["scales"].astype(np.float32)
        wide: Floats = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return wide * self._by_input(scales, in_features)

    def _by_input(self, scales: Floats, in_features: int) -> Floats:
        """Scales (rows, G) as they belong to inputs: (rows, K), or (rows, 1)."""
        return np.repeat(scales, self.group, axis=1)[:, :in_features] if self.group else scales

    def _checked(self, blocks: Iterable[BlockRows], shape: tuple[int, int]) -> Iterator[Values]:
        """The fields of each block of rows. Raises ModelError as `adopt` says."""
        done = 0
        for block in blocks:
            stop = done + len(block)
            if block.codes.shape[1] != shape[1] or stop > shape[0]:
                raise misfit(block.codes.shape, done, shape)
            if (block.codes & np.uint8(127) == 127).any():
                raise ModelError(f"NaN stands in rows {done} to {stop - 1}.")
            scales = block.scales.astype(np.float32)
            if not (np.abs(scales) < MOST_SCALE).all():
                raise ModelError(
                    f"a scale is NaN, infinite or too large (rows {done} to {stop - 1})."
                )
            yield {"codes": block.codes, "scales": scales}
            done = stop
        if done != shape[0]:
            raise ModelError(f"only {done} of {shape[0]} rows were found.")
