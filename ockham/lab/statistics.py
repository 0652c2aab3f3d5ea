"""How sure a measured figure is: 95% intervals for shares, ratios of sums and paired differences.

The unit that is resampled is the item (a prompt), never the token: tokens of one text are not
independent, and an interval over tokens would be far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]

Z = 1.959963984540054
"""Two-sided 95% of the normal distribution."""
RESAMPLES = 2000
_BLOCK = 4_000_000
"""Counts drawn at once, so that many items take no more memory than few."""


def wilson(successes: float, trials: int) -> Interval | None:
    """The interval of a proportion (Wilson 1927); None of no trials.

    It stays within [0, 1] and has width even where every trial succeeded or failed.
    """
    if not trials:
        return None
    share, z2 = successes / trials, Z * Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """The interval of mean(after) - mean(before) for scores of 0 and 1 of the same items, in the
    same order: Agresti and Min 2005, half an item added to each cell of the table of pairs.

    None of no items. Raises ValueError for other scores or lists of different lengths.
    """
    items = len(before)
    if len(after) != items:
        raise ValueError(f"paired scores of {items} and of {len(after)} items.")
    if not {*before, *after} <= {0.0, 1.0}:
        raise ValueError("paired differences are of scores of 0 and 1.")
    if not items:
        return None
    gained = sum(b < a for b, a in zip(before, after, strict=True)) + 0.5
    lost = sum(b > a for b, a in zip(before, after, strict=True)) + 0.5
    padded = items + 2
    difference = (gained - lost) / padded
    half = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / padded) / padded
    return max(-1.0, difference - half), min(1.0, difference + half)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> Interval | None:
    """The interval of sum(numerators) / sum(denominators) over items, by the percentile bootstrap
    (Efron 1979) of whole items. None of fewer than two items, of which nothing can be said."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    items = len(top)
    if items < 2 or not bottom.sum():
        return None
    random = np.random.default_rng(seed)
    ratios: list[float] = []
    while len(ratios) < RESAMPLES:
        draws = min(RESAMPLES - len(ratios), max(1, _BLOCK // items))
        times = random.multinomial(items, np.full(items, 1 / items), size=draws)
        below = times @ bottom
        drawn = below > 0
        ratios += ((times @ top)[drawn] / below[drawn]).tolist()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
