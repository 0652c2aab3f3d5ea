"""How sure a measured figure is: 95% intervals for shares, ratios and paired differences.

The unit that is resampled is the item (a prompt), never the token: tokens of one text are not
independent, and an interval over tokens would be far too narrow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

Z = 1.959963984540054
"""Two-sided 95% of the normal distribution."""
_STUDENT = (
    *(12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818),
    *(2.4469119, 2.3646243, 2.3060041, 2.2621572, 2.2281389),
)
RESAMPLES = 2000
LEAST_ITEMS = 5
"""Of n items, one resample in n**(n - 1) is a single item throughout: with five, the extremes are
rarer than the 2.5% that are left out on either side."""
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
    """The interval of mean(after) - mean(before) for scores from 0 to 1 of the same items, in the
    same order: Agresti and Min 2005, half an item added to each cell of the table of pairs. It
    is the same where items have shares of several questions in place of 0 and 1.

    None of no items. Raises ValueError for other scores or lists of different lengths.
    """
    items = len(before)
    if len(after) != items:
        raise ValueError(f"paired scores of {items} and of {len(after)} items.")
    if not all(0.0 <= score <= 1.0 for score in (*before, *after)):
        raise ValueError("paired differences are of scores from 0 to 1.")
    if not items:
        return None
    gains = [a - b for b, a in zip(before, after, strict=True)]
    padded = items + 2
    difference = math.fsum(gains) / padded
    spread = math.fsum(gain * gain for gain in gains) + 1  # half an item gained, half a one lost
    half = Z * math.sqrt(spread - difference**2 * padded) / padded
    return max(-1.0, difference - half), min(1.0, difference + half)


def paired_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, Interval | None]:
    """The ratio before / after of pairs measured beside each other, and its interval.

    The geometric mean, and Student's interval of the logarithms, so that a drift of the machine
    that both of a pair see cancels. The interval of a single pair is None. Raises ValueError
    without pairs, for lists of different lengths, or if a value is not positive.
    """
    if not before:
        raise ValueError("there are no pairs to take a ratio of.")
    if min(*before, *after) <= 0:
        raise ValueError("ratios need positive values.")
    logs = [math.log(b / a) for b, a in zip(before, after, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return math.exp(mean), None
    half = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


@dataclass(frozen=True)
class MeanRatio:
    """The mean of ratios over kinds of things, each of which counts the same."""

    geometric: float
    geometric_interval: Interval
    arithmetic: float
    arithmetic_interval: Interval


def mean_ratio(kinds: Sequence[Sequence[float]]) -> MeanRatio:
    """The mean over kinds of each kind's ratio, which is the geometric mean of its measured ones.

    The kinds are taken as given, so that the intervals are of what was measured within each: of the
    logarithms, by Student's t with Welch's degrees of freedom (Satterthwaite 1946); that of the
    arithmetic mean by the delta method. Raises ValueError for no kinds, for one of fewer than two
    ratios, or if a ratio is not positive.
    """
    if not kinds or min(map(len, kinds)) < 2:
        raise ValueError("a mean over kinds needs at least two ratios of each.")
    if min(map(min, kinds)) <= 0:
        raise ValueError("ratios need positive values.")
    logs = [[math.log(ratio) for ratio in ratios] for ratios in kinds]
    means = np.array([statistics.fmean(each) for each in logs])
    variances = np.array([statistics.variance(each) / len(each) for each in logs])
    freedom = np.array([len(each) - 1 for each in logs])
    shares = np.exp(means)
    middle, half = float(means.mean()), _half(variances, freedom)
    mean, mean_half = float(shares.mean()), _half(shares**2 * variances, freedom)
    return MeanRatio(
        geometric=math.exp(middle),
        geometric_interval=(math.exp(middle - half), math.exp(middle + half)),
        arithmetic=mean,
        arithmetic_interval=(mean - mean_half, mean + mean_half),
    )


def _half(variances: NDArray[np.float64], freedom: NDArray[np.int64]) -> float:
    """Half of the interval of a mean of estimates with these variances."""
    total = float(variances.sum())
    if not total:
        return 0.0
    least = int(total**2 / float((variances**2 / freedom).sum()))
    return student(max(1, least)) * math.sqrt(total) / len(variances)


def student(freedom: int) -> float:
    """Two-sided 95% of Student's t: a table for few degrees of freedom, else the expansion around
    the normal (Abramowitz and Stegun, 26.7.5), which is then right to 0.0001."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> Interval | None:
    """The interval of sum(numerators) / sum(denominators) over items, by the percentile bootstrap
    (Efron 1979) of whole items.

    None of fewer than `LEAST_ITEMS` items: of two, it would reach from one to the other, which
    holds the truth half of the time. None of items whose ratios are all the same too, whose spread
    is not known.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    items = len(top)
    if items < LEAST_ITEMS or not bottom.sum():
        return None
    random = np.random.default_rng(seed)
    ratios: list[float] = []
    while len(ratios) < RESAMPLES:
        draws = min(RESAMPLES - len(ratios), max(1, _BLOCK // items))
        times = random.multinomial(items, np.full(items, 1 / items), size=draws)
        below = times @ bottom
        drawn = below > 0
        ratios += ((times @ top)[drawn] / below[drawn]).tolist()
    if min(ratios) == max(ratios):
        return None
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
