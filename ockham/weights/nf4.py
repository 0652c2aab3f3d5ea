"""Weights in 16 fixed levels, the quantiles of a normal distribution, with a scale a group."""

from __future__ import annotations

from statistics import NormalDist
from typing import ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Role, Values
from ockham.kernels.native import core
from ockham.weights.by_rows import ByRows, native_codes, product_by_group
from ockham.weights.scales import check_scales

GROUPS = (32, 64, 128)
"""The inputs that may share a scale."""

OFFSET = 0.9677083
"""The probability of the outermost level: that of QLoRA's code (create_normal_map of
https://github.com/bitsandbytes-foundation/bitsandbytes)."""

DIVISORS = (127.0, 119.0, 132.0, 138.0, 145.0, 154.0)
"""A group's scale is its largest magnitude over one of these: 127 holds that weight exactly, as in
the paper, more clips it."""


def normal_levels() -> Floats:
    """The 16 levels as multiples of 1 / 127: eight quantiles above zero, zero, and seven below.

    NormalFloat (QLoRA, arXiv:2305.14314, section 3) takes quantiles at equal distances of
    probability on either side, scaled so that the outermost are 1 and -1. Here they are rounded to
    whole 127ths, so that products are integers.
    """
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(OFFSET, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(OFFSET, 0.5, 8)[:-1]]
    levels = np.array(sorted([*above, 0.0, *below]))
    rounded: Floats = np.rint(127 * levels / levels.max()).astype(np.float32)
    return rounded


LEVELS = normal_levels()
HALFWAY = (LEVELS[1:] + LEVELS[:-1]) / 2


def nearest(units: Floats) -> npt.NDArray[np.uint8]:
    """The code of the level that is nearest to each value; the lower one where two are. Counting
    the borders below it takes a tenth of the time of a search among them."""
    codes = np.zeros(units.shape, np.uint8)
    for border in HALFWAY:
        codes += units > border
    return codes


def choose_codes(groups: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Codes (..., group) and scales (...,) of groups of weights: of DIVISORS the first with the
    least sum of squared errors. Its order is that of `scales.choose_scales`."""
    most = np.abs(groups).max(axis=-1, keepdims=True)
    best_codes = np.zeros(groups.shape, np.uint8)
    best_scale = np.zeros(most.shape, np.float16)
    best_error = np.full(most.shape, np.inf, np.float32)
    for divisor in DIVISORS:
        scale = (most / np.float32(divisor)).astype(np.float16)
        wide = scale.astype(np.float32)
        inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
        codes = nearest(groups * inverse)
        squares = np.square(groups - LEVELS[codes] * wide)
        lanes = np.zeros((*groups.shape[:-1], 16), np.float32)
        for start in range(0, groups.shape[-1], 16):
            lanes = lanes + squares[..., start : start + 16]
        for half in (8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        better = lanes < best_error
        best_error = np.where(better, lanes, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better, codes, best_codes)
    return best_codes, best_scale[..., 0]


class Nf4Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group` is how many inputs share a scale."""

    group: int = 64

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ConfigError(f"nf4 has groups of {GROUPS} inputs, not of {self.group!r}.")


@register("format", "nf4", exact=False)
class Nf4(ByRows):
    """Weights in 16 levels that lie as a normal distribution does, inputs in int8 by group.

    NormalFloat (QLoRA, arXiv:2305.14314): weights are nearly normal, so levels are dense about
    zero. Takes 4.25 bits a weight in groups of 64, an fp16 scale with each. Codes are looked up in
    a table of 16 bytes; sums within a group are exact integers, and groups are added in fp32 in
    order.

    `codes`: uint8 (rows, K) below 16, `scales`: float16 (rows, G); w = LEVELS[code] * scale.
    """

    name: ClassVar[str] = "nf4"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None

    Options: ClassVar[type[msgspec.Struct]] = Nf4Options
    forms: ClassVar[tuple[str, ...]] = tuple(f"nf4:{group}" for group in GROUPS)

    def __init__(self, options: Nf4Options | None = None) -> None:
        self.group = (options or Nf4Options()).group
        self.activations = f"int8 by row and group of {self.group}"

    @classmethod
    def of_group(cls, group: int) -> Nf4:
        if group not in GROUPS:
            raise ValueError(f"its group is {group!r}")
        return cls(Nf4Options(group))

    def beside(self, role: Role, in_features: int) -> str | None:
        """8 bits take embeddings, head and routers, which 4 would spoil."""
        return "int8" if role in ("embedding", "head", "router") else None

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        if in_features % self.group:
            raise ModelError(
                f"{in_features} inputs cannot be cut into groups of {self.group}: choose another "
                "group, or another format."
            )
        groups = in_features // self.group
        return {
            "codes": Field("uint8", (in_features,), 4),
            "scales": Field("float16", (groups,), 16),
        }

    def encode(self, rows: Array) -> Values:
        """As `choose_codes` says. Refuses weights whose scale fp16 cannot hold."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        check_scales(wide, min(DIVISORS))
        if core is None:
            codes, scales = choose_codes(wide.reshape(len(wide), -1, self.group))
            return {"codes": codes.reshape(wide.shape), "scales": scales}
        return native_codes(self.name, self.group, wide, np.empty(wide.shape, np.uint8))

    def matmul(self, values: Values, x: Floats) -> Floats:
        """See `product_by_group`; the levels stand in the place of codes."""
        return product_by_group(x.reshape(len(x), -1, self.group), values, self._widened)

    def decode(self, values: Values, in_features: int) -> Floats:
        levels, scales = self._widened(values)
        rows: Floats = levels * scales[:, :, None]
        return rows.reshape(len(levels), in_features)

    def _widened(self, values: Values) -> tuple[Floats, Floats]:
        """Levels (rows, G, group), and scales (rows, G)."""
        levels: Floats = LEVELS[values["codes"]].reshape(len(values["codes"]), -1, self.group)
        return levels, values["scales"].astype(np.float32)
