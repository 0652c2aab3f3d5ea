"""Ratios of paired measurements, with what they leave open."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios and its 95% interval (infinite from a single pair)."""

    value: float
    low: float
    high: float
    pairs: int


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio a / b over pairs (a, b) that were measured beside each other.

    A drift of the machine that both of a pair see cancels. The logarithms of the ratios are taken
    as normal, and the interval is Student's. Raises ValueError without pairs or if a value is not
    positive.
    """
    if not pairs:
        raise ValueError("there are no pairs to take a ratio of.")
    if any(value <= 0 for pair in pairs for value in pair):
        raise ValueError("ratios need positive values.")
    logs = [math.log(a / b) for a, b in pairs]
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), 0.0, math.inf, 1)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1)) * error
    return Ratio(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), len(logs))
