"""Ratios of paired measurements, with what they leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ockham.lab import statistics


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios and its 95% interval (infinite from a single pair)."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        if self.pairs == 1:
            return f"{self.value:.2f} (one pair)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}; {self.pairs})"


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio a / b over pairs (a, b) that were measured beside each other.

    A drift of the machine that both of a pair see cancels. The logarithms of the ratios are taken
    as normal, and the interval is Student's. Raises ValueError without pairs or if a value is not
    positive.
    """
    value, interval = statistics.paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
    low, high = interval or (0.0, math.inf)
    return Ratio(value, low, high, len(pairs))
