"""What formats with two levels of scales share: an 8-bit integer for each group of inputs, under
one float for each row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Arithmetic, Field, Role, Values
from ockham.weights.by_rows import ROWS_WIDENED, ByRows, add_group, count, cut, quantise

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
        group_scales, scale = self.units(groups, self.searched(groups))
        return {
            "codes": self.nearest(groups, group_scales * scale).reshape(wide.shape),
            "group_scales": group_scales.astype(np.int8),
            "scale": scale,
        }

    def searched(self, groups: Floats) -> Floats:
        """The scale (rows, G) that each group (rows, G, group) would have alone."""
        raise NotImplementedError

    def units(self, groups: Floats, scales: Floats) -> tuple[Floats, Floats]:
        """Scales (rows, G) of groups as whole numbers (rows, G) of a row's scale (rows, 1)."""
        scale = np.abs(scales).max(axis=1, keepdims=True) / np.float32(MOST)
        return np.rint(scales * inverse_of(scale)), scale

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
