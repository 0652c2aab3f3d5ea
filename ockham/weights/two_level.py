"""What formats with two levels of scales share: an 8-bit integer for each group of inputs, under
one float for each row."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Arithmetic, Field, FillableLinear, Layout, Role, Values
from ockham.kernels.layouts import ROWS
from ockham.weights.by_rows import (
    ROWS_WIDENED,
    ByRows,
    add_group,
    count,
    cut,
    quantise,
    regrouped,
    with_zeros,
)
from ockham.weights.gptq import Bytes, Round, compensated_codes

GROUPS = (32, 64, 128)
"""The inputs that may share an integer scale."""

SPAN = 128
"""The inputs of a product that are quantised with one scale."""

MOST = 127
"""The largest integer scale."""

MOST_WEIGHT = 2.0**100
"""Weights from here on are refused: fp32 must hold what is made of their scales."""


def checked_group(name: str, group: int) -> int:
    """The group, if it is one of GROUPS. Raises ConfigError."""
    if group not in GROUPS:
        raise ConfigError(f"{name} has groups of {GROUPS} inputs, not of {group!r}.")
    return group


class TwoLevel(ByRows):
    """A format whose codes stand for integer levels, `group_scale` times as large in a group, and
    `scale` times in a row: w = levels[code] * group_scale * scale.

    Of K inputs in G groups, `codes`: uint8 (rows, K) below 16, `group_scales`: int8 (rows, G), at
    most 127 in magnitude, and `scale`: float32 (rows, 1).
    """

    name: ClassVar[str]
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = f"int8 by row and {SPAN} inputs"
    levels: ClassVar[Floats]
    """(16,): the integers that codes stand for."""

    def beside(self, role: Role, in_features: int) -> str | None:
        """8 bits take embeddings, head and routers, which 4 would spoil."""
        return "int8" if role in ("embedding", "head", "router") else None

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        if in_features % self.group:
            raise ModelError(
                f"{in_features} inputs cannot be cut into groups of {self.group}: choose another "
                "group, or another format."
            )
        return {
            "codes": Field("uint8", (in_features,), 4),
            "group_scales": Field("int8", (in_features // self.group,), 8),
            "scale": Field("float32", (1,), 32),
        }

    def encode(self, rows: Array) -> Values:
        """Scales of groups as `searched` gives them, rounded to whole units of which the largest in
        a row has 127; then for each weight the nearest level. Refuses weights that are too
        large."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        if np.abs(wide).max() >= MOST_WEIGHT:
            raise ModelError("a weight is too large for the scale of its row.")
        groups = wide.reshape(len(wide), -1, self.group)
        searched = self.searched(groups)
        scale = self.row_scale(searched)
        group_scales = self.units(groups, searched, scale)
        return {
            "codes": self.nearest(groups, group_scales * scale).reshape(wide.shape),
            "group_scales": group_scales.astype(np.int8),
            "scale": scale,
        }

    def alone(self) -> Self:
        """Fitted weights need nothing else beside them than others do."""
        return self

    def fit(self, rows: Floats, moments: Floats, layout: Layout = ROWS) -> FillableLinear:
        """Codes that make good for one another (`compensated_codes`). The scale of a group follows
        its weights as these change, in the unit that `encode` would give the row."""
        if np.abs(rows).max() >= MOST_WEIGHT:
            raise ModelError("a weight is too large for the scale of its row.")
        groups = rows.reshape(len(rows), -1, self.group)
        scale = self.row_scale(self.searched(groups))
        group_scales = np.empty(groups.shape[:2], np.int8)

        def begin(number: int, block: Floats, importance: Floats) -> Round:
            group = np.ascontiguousarray(block.T)[:, None]
            units = self.units(group, self.searched(group), scale)[:, 0]
            group_scales[:, number] = units
            own: Floats = units * scale[:, 0]

            def rounded(weights: Floats) -> tuple[Bytes, Floats]:
                codes = self.nearest(weights[:, None, None], own[:, None])[:, 0, 0]
                return codes, self.levels[codes] * own

            return rounded

        values: Values = {
            "codes": compensated_codes(rows, moments, self.group, begin),
            "group_scales": group_scales,
            "scale": scale,
        }
        packed, first = layout.blank(self, *rows.shape), 0
        for piece in regrouped([values], layout.multiple, with_zeros):
            packed.fill(first, piece)
            first += count(piece)
        return packed

    def searched(self, groups: Floats) -> Floats:
        """The scale (rows, G) that each group (rows, G, group) would have alone."""
        raise NotImplementedError

    def row_scale(self, scales: Floats) -> Floats:
        """The scale (rows, 1) of rows whose groups would have such scales (rows, G) alone."""
        found: Floats = np.abs(scales).max(axis=1, keepdims=True) / np.float32(MOST)
        return found

    def units(self, groups: Floats, scales: Floats, scale: Floats) -> Floats:
        """Scales (rows, G) of groups as whole numbers (rows, G) of a row's scale (rows, 1)."""
        found: Floats = np.clip(np.rint(scales * inverse_of(scale)), -MOST, MOST)
        return found

    def nearest(self, groups: Floats, scales: Floats) -> npt.NDArray[np.uint8]:
        """The code of the level that is nearest to each weight of groups (rows, G, group)."""
        raise NotImplementedError

    def matmul(self, values: Values, x: Floats) -> Floats:
        """For each span of inputs in turn, y = fma(float(sum of a * level * group_scale),
        scale_x * scale, y), where a are the span's inputs as int8 (`quantise`). The sums are
        exact integers."""
        rows, inputs = count(values), x.shape[1]
        product = np.zeros((len(x), rows), np.float32)
        spans = [slice(k, min(k + SPAN, inputs)) for k in range(0, inputs, SPAN)]
        prepared = [quantise(x[:, span]) for span in spans]
        for first in range(0, rows, ROWS_WIDENED):
            part = cut(values, first, first + ROWS_WIDENED)
            whole = self._whole(part).astype(np.float64)
            scale: Floats = part["scale"].astype(np.float32).T
            y = product[:, first : first + len(whole)]
            for span, (a, scale_x) in zip(spans, prepared, strict=True):
                sums = (a.astype(np.float64) @ whole[:, span].T).astype(np.float32)
                y[...] = add_group(y, sums, scale_x * scale)
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        rows: Floats = self._whole(values) * values["scale"].astype(np.float32)
        return rows

    def _whole(self, values: Values) -> Floats:
        """Weights (rows, K) in units of their row's scale."""
        levels = self.levels[values["codes"]].reshape(count(values), -1, self.group)
        whole: Floats = levels * values["group_scales"].astype(np.float32)[:, :, None]
        return whole.reshape(count(values), -1)


def inverse_of(scale: Floats) -> Floats:
    """1 / scale, and 0 where the scale is 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
