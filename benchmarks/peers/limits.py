"""The machine's limits, sampled beside each run by the probes of Ockham's native core."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

from ockham.cli.machine import READ_BYTES
from ockham.kernels.memory import allocate
from ockham.kernels.native import core

SAMPLES = 3
ARITHMETIC_S = 0.004


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together, medians of a few samples."""

    read_bytes_per_s: float
    int8_ops_per_s: float
    bf16_ops_per_s: float

    @staticmethod
    def mean(first: Limits, second: Limits) -> Limits:
        """Of the samples before and after a run."""
        after = asdict(second)
        return Limits(**{name: (value + after[name]) / 2 for name, value in asdict(first).items()})


class Probe:
    """Samples the limits; holds the memory that it reads. Raises RuntimeError without the core."""

    def __init__(self, threads: int) -> None:
        if core is None:
            raise RuntimeError(
                "the native core is not built, and without it there is no limit to compare with; "
                "`ockham doctor` says why."
            )
        self._pool, self._isa = core.ThreadPool(threads), core.chosen()
        self._memory = allocate(READ_BYTES)
        self._memory[:] = 1

    def sample(self) -> Limits:
        pool, isa = self._pool, self._isa

        def rate(kind: core.Rate) -> float:
            samples = [core.arithmetic_rate(pool, isa, kind, ARITHMETIC_S) for _ in range(SAMPLES)]
            return statistics.median(samples)

        return Limits(
            statistics.median(core.read_rate(pool, isa, self._memory) for _ in range(SAMPLES)),
            rate(core.Rate.INT8),
            rate(core.Rate.BF16),
        )
