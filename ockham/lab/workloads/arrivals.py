"""When the sessions of a workload begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from ockham.lab.workloads.request import Request


def arrival_times(requests: Sequence[Request], rate: float | None, seed: int) -> list[float]:
    """Seconds from the start at which each session begins; 0 for what comes after another.

    `rate` is the mean number of sessions that begin in a second, at random times (Poisson) that
    `seed` says; inf begins all at once, None takes the times of the requests themselves."""
    rng, now = Random(f"arrivals {seed}"), 0.0
    times = []
    for request in requests:
        if request.after is not None:
            times.append(0.0)
        elif rate is None:
            times.append(request.arrival_s)
        else:
            times.append(now)
            now += rng.expovariate(rate) if math.isfinite(rate) else 0.0
    return times
