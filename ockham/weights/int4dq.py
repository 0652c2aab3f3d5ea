"""Weights in 4 bits with an 8-bit scale for each group of inputs, and a float for each row."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.registry import register
from ockham.kernels.native import core, packing_pool
from ockham.weights.scales import DIVISORS, choose_scales
from ockham.weights.two_level import GROUPS, MOST_WEIGHT, TwoLevel, checked_group, inverse_of

ZERO = 8
"""The code that stands for zero."""

LARGEST = 256.0
"""What the largest weight of a row becomes before scales are searched, which are fp16 there."""


class Int4dqOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group` is how many inputs share an integer scale."""

    group: int = 32

    def __post_init__(self) -> None:
        checked_group("int4dq", self.group)


@register("format", "int4dq", exact=False)
class Int4dq(TwoLevel):
    """Weights in 4 bits whose scales are quantised too, inputs in int8 by 128 (w4a8).

    Each group of 32, 64 or 128 inputs has an 8-bit integer scale under one float for each row
    (QServe's progressive groups, arXiv:2405.04532, section 4.1; QLoRA calls it double quantisation,
    arXiv:2305.14314, section 3). The integer scale joins the sum of products, so that small groups
    cost hardly more time than large ones. Takes 4.25 bits a weight in groups of 32, where `int4:32`
    takes 4.5.

    The values are those of `TwoLevel`, with levels from -8 to 7.
    """

    name: ClassVar[str] = "int4dq"
    levels: ClassVar[Floats] = np.arange(-ZERO, ZERO, dtype=np.float32)

    Options: ClassVar[type[msgspec.Struct]] = Int4dqOptions
    forms: ClassVar[tuple[str, ...]] = tuple(f"int4dq:{group}" for group in GROUPS)

    def __init__(self, options: Int4dqOptions | None = None) -> None:
        self.group = (options or Int4dqOptions()).group

    @classmethod
    def of_group(cls, group: int) -> Int4dq:
        if group not in GROUPS:
            raise ValueError(f"its group is {group!r}")
        return cls(Int4dqOptions(group))

    def searched(self, groups: Floats) -> Floats:
        """The scales of `choose_scales`, of rows that are brought to one size before."""
        most = np.abs(groups).max(axis=(1, 2), keepdims=True)
        unit = np.where(
            most < np.float32(1 / MOST_WEIGHT), np.float32(1), most / np.float32(LARGEST)
        )
        even: Floats = (groups / unit).astype(np.float32)
        if core is None:
            halves: Array = choose_scales(even)[1]
        else:
            flat = np.ascontiguousarray(even.reshape(-1, self.group))
            found, own = np.empty(flat.shape, np.uint8), np.empty(len(flat), np.float16)
            divisors = np.array(DIVISORS[ZERO], np.float32)
            core.search_codes(packing_pool(), flat, ZERO, divisors, found, own.view(np.uint16))
            halves = own.reshape(groups.shape[:2])
        wide: Floats = halves.astype(np.float32) * unit[:, :, 0]
        return wide

    def nearest(self, groups: Floats, scales: Floats) -> npt.NDArray[np.uint8]:
        codes = np.rint(groups * inverse_of(scales)[:, :, None])
        found: npt.NDArray[np.uint8] = (np.clip(codes, -ZERO, ZERO - 1) + ZERO).astype(np.uint8)
        return found
