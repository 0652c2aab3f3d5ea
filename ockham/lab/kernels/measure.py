"""One kernel at one shape: what it must do, what it took, and what it could have taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ockham.lab.kernels.limits import Limits

if TYPE_CHECKING:
    from ockham.kernels import _cpu

BURST_S = 0.01
MOST_CALLS = 200


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel to time. `run(calls)` gives the seconds of each of about `calls` calls.

    `bytes` are those that one call must move between memory and cores, weights and state above all;
    rows of activations count too, though caches may hold them. `operations` are multiplications and
    additions, at the rate of the instructions that the kernel can use for them.
    """

    kernel: str
    shape: str
    rows: int
    bytes: int
    operations: int
    rate: _cpu.Rate
    run: Callable[[int], list[float]]
    keys: int = 0
    """Of attention: the keys that the last row of a sequence sees."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A case's medians; `share` is the least possible time over the time taken.

    The least possible is the larger of bytes over the rate of reading memory and operations over
    the rate of arithmetic. What caches hold can be faster than that: its share passes 1.
    """

    kernel: str
    shape: str
    rows: int
    keys: int
    threads: int
    time_s: float
    bytes: int
    operations: int
    read_bytes_per_s: float
    operations_per_s: float
    share: float


def measure(
    cases: Iterable[Case], limits: Limits, rounds: int, quantile: float
) -> Iterator[Measured]:
    """Time each case in `rounds` bursts, in turns with the probes of its limits.

    Of the bursts' calls and of the probes the `quantile` fastest counts: 0.5, the median, on a
    quiet machine; 0.1 or less where other programs take the cores away most of the time.
    """
    for case in cases:
        first = case.run(1)  # what is allocated at a first call is not timed
        calls = max(3, min(MOST_CALLS, int(BURST_S / (sum(first) / len(first)))))
        times: list[float] = []
        reads: list[float] = []
        rates: list[float] = []
        for _ in range(rounds):
            reads += limits.read_rates()
            rates += limits.arithmetic_rates(case.rate)
            times += case.run(calls)
        time_s = float(np.quantile(times, quantile))
        read = float(np.quantile(reads, 1 - quantile))
        rate = float(np.quantile(rates, 1 - quantile))
        least_s = max(case.bytes / read, case.operations / rate)
        yield Measured(
            case.kernel,
            case.shape,
            case.rows,
            case.keys,
            limits.pool.size,
            time_s,
            case.bytes,
            case.operations,
            read,
            rate,
            least_s / time_s,
        )
