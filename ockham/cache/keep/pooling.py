"""Means, or the largest, of neighbouring cells: what stands beside a cell that is looked at matters
too."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ockham.core.arrays import Doubles

Pooling = Literal["mean", "max"]


def wrong_kernel(kernel: int) -> str | None:
    """What is wrong with it, in a sentence."""
    if 1 <= kernel <= 63 and kernel % 2:
        return None
    return f"kernel must be an odd number from 1 to 63, got {kernel}."


def pooled(values: Doubles, kernel: int, pooling: Pooling) -> Doubles:
    """The mean or the largest of each value (..., n) and its (kernel - 1) / 2 neighbours on either
    side; beyond the ends there are zeros."""
    side = kernel // 2
    around = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(side, side)])
    count = values.shape[-1]
    shifted = [around[..., i : i + count] for i in range(kernel)]
    largest = pooling == "max"
    found: Doubles = np.maximum.reduce(shifted) if largest else np.add.reduce(shifted) / kernel
    return found
