"""Children in proportion to rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping


def wrong_balance(balance: float | None) -> str | None:
    """What of a temperature of the shares cannot be; None if it can."""
    if balance is not None and not 1e-3 <= balance <= 1e3:
        return f"balance must lie in [0.001, 1000], got {balance}."
    return None


def softmax(scores: Mapping[int, float], temperature: float) -> dict[int, float]:
    """Shares in proportion to e^(score / temperature)."""
    most = max(scores.values())
    weights = {n: math.exp((score - most) / temperature) for n, score in scores.items()}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


def apportioned(shares: Mapping[int, float], room: int) -> dict[int, int]:
    """Whole numbers that sum to `room`, in proportion to shares that sum to 1: each rounded down,
    and what is left to the largest remainders (the lower number on a tie)."""
    exact = {n: share * room for n, share in shares.items()}
    counts = {n: int(value) for n, value in exact.items()}
    left = room - sum(counts.values())
    order = sorted(exact, key=lambda n: (counts[n] - exact[n], n))
    for number in order[:left]:
        counts[number] += 1
    return counts
