"""Weights as floats of 4 bits (E2M1) with an 8-bit scale for each group, and a float for each
row."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.core.registry import register
from ockham.weights.two_level import GROUPS, TwoLevel, checked_group, inverse_of

MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)
"""Twice what the codes below 8 stand for: two bits of exponent and one of mantissa. The fourth bit
is the sign (Open Compute Project, Microscaling Formats, version 1.0, section 5.3.3)."""

HALFWAY = (np.array(MAGNITUDES[1:], np.float32) + np.array(MAGNITUDES[:-1], np.float32)) / 2
"""Between one magnitude and the next."""

DIVISORS = (12.0, 11.0, 10.0, 13.0, 14.5)
"""A group's scale is its largest magnitude over one of these: 12 holds that weight exactly, more
clips it."""

MOST_POWER = 64
"""The largest power of two of a group, where scales are powers of two."""

Constraint = Literal["none", "m1", "m2"]


class Fp4Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group` is how many inputs share an integer scale. `scales`: "m2" makes the scales of groups
    powers of two times that of their row, "m1" that of rows too."""

    group: int = 32
    scales: Constraint = "none"

    def __post_init__(self) -> None:
        checked_group("fp4", self.group)


@register("format", "fp4", exact=False, paper="202")
class Fp4(TwoLevel):
    """Weights as 4-bit floats (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6), inputs in int8 by 128.

    ZeroQuant-FP (arXiv:2307.09782): FP4 holds weights as well as INT4 or better. Its constraints on
    scales are options: m2 for powers of two in ratio to a common scale (of the row here), m1 for
    powers of two themselves. Without one the scales of groups are 8-bit integers. A table of 16
    bytes gives levels, and the product sums integers. Takes 4.25 bits a weight in groups of 32.

    The values are those of `TwoLevel`, with twice the floats as levels.
    """

    name: ClassVar[str] = "fp4"
    levels: ClassVar[Floats] = np.array([*MAGNITUDES, *(-m for m in MAGNITUDES)], np.float32)

    Options: ClassVar[type[msgspec.Struct]] = Fp4Options
    forms: ClassVar[tuple[str, ...]] = tuple(f"fp4:{group}" for group in GROUPS)

    def __init__(self, options: Fp4Options | None = None) -> None:
        options = options or Fp4Options()
        self.group, self.scales = options.group, options.scales

    @classmethod
    def of_group(cls, group: int) -> Fp4:
        if group not in GROUPS:
            raise ValueError(f"its group is {group!r}")
        return cls(Fp4Options(group))

    def searched(self, groups: Floats) -> Floats:
        """Of DIVISORS the first with the least sum of squared errors."""
        most = np.abs(groups).max(axis=-1)
        candidates = np.stack([most / np.float32(divisor) for divisor in DIVISORS])
        errors = np.stack([self._errors(groups, scales) for scales in candidates])
        found: Floats = np.take_along_axis(candidates, errors.argmin(axis=0)[None], axis=0)[0]
        return found

    def row_scale(self, scales: Floats) -> Floats:
        """As in `TwoLevel`; with a constraint the largest scale of a group is the largest power of
        two times it."""
        if self.scales == "none":
            return super().row_scale(scales)
        scale = scales.max(axis=1, keepdims=True) / np.float32(MOST_POWER)
        if self.scales == "m1":
            scale = np.where(scale > 0, np.exp2(np.ceil(np.log2(np.where(scale > 0, scale, 1)))), 0)
        found: Floats = scale.astype(np.float32)
        return found

    def units(self, groups: Floats, scales: Floats, scale: Floats) -> Floats:
        """As in `TwoLevel`; with a constraint, of the powers of two on either side of a group's
        scale that with the smaller error."""
        if self.scales == "none":
            return super().units(groups, scales, scale)
        power = np.floor(np.log2(np.clip(scales * inverse_of(scale), 1, MOST_POWER)))
        below = np.exp2(power).astype(np.float32)
        above = np.minimum(2 * below, np.float32(MOST_POWER))
        better = self._errors(groups, above * scale) < self._errors(groups, below * scale)
        found: Floats = np.where(better, above, below)
        return found

    def nearest(self, groups: Floats, scales: Floats) -> npt.NDArray[np.uint8]:
        """The lower level where two are as near. Code 8, the other zero, is never chosen."""
        units: Floats = groups * inverse_of(scales)[:, :, None]
        return nearest_codes(units)

    def _errors(self, groups: Floats, scales: Floats) -> Floats:
        """The sum of squared errors of each group with such a scale: (rows, G)."""
        rounded = self.levels[self.nearest(groups, scales)] * scales[:, :, None]
        found: Floats = np.square(groups - rounded).sum(axis=-1)
        return found


def nearest_codes(units: Floats) -> npt.NDArray[np.uint8]:
    """The code of the level that is nearest to each value, the lower one where two are.

    Magnitudes are compared by their bits, which rise as they do. Those of negative values count as
    the next larger float, so that halfway they take the larger magnitude. A search among the levels
    takes five times as long.
    """
    bits = np.ascontiguousarray(units, np.float32).view(np.int32)
    negative = bits < 0
    magnitudes = (bits & np.int32(0x7FFFFFFF)) + negative
    codes = np.zeros(bits.shape, np.uint8)
    for border in HALFWAY.view(np.int32):
        codes += magnitudes > border
    codes |= (negative & (codes > 0)).astype(np.uint8) << 3
    return codes
