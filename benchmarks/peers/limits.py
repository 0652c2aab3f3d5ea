"""The machine's limits, sampled beside each run by the probes of Ockham's native core."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ockham.cli.machine import READ_BYTES
from ockham.kernels.memory import allocate
from ockham.kernels.native import core

SAMPLES = 3
ARITHMETIC_S = 0.004


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together: the median of a few samples of reading, which drifts, and the
    best of arithmetic, which does not."""

    read_bytes_per_s: float
    int8_ops_per_s: float
    bf16_ops_per_s: float

    @staticmethod
    def beside(before: Limits, after: Limits) -> Limits:
        """Those of a run, from the samples before and after it."""
        return Limits(
            (before.read_bytes_per_s + after.read_bytes_per_s) / 2,
            max(before.int8_ops_per_s, after.int8_ops_per_s),
            max(before.bf16_ops_per_s, after.bf16_ops_per_s),
        )


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

    def read_rate(self) -> float:
        """Bytes a second of one pass: some 10 ms."""
        return float(core.read_rate(self._pool, self._isa, self._memory))

    def sample(self) -> Limits:
        pool, isa = self._pool, self._isa

        def rate(kind: core.Rate) -> float:
            return max(core.arithmetic_rate(pool, isa, kind, ARITHMETIC_S) for _ in range(SAMPLES))

        return Limits(
            statistics.median(self.read_rate() for _ in range(SAMPLES)),
            rate(core.Rate.INT8),
            rate(core.Rate.BF16),
        )
