"""The limits of the machine, sampled in short bursts between the measurements that they bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ockham.core.errors import ConfigError
from ockham.kernels.memory import allocate
from ockham.kernels.native import chosen_isa, core, reason

if TYPE_CHECKING:
    from ockham.kernels import _cpu

COLD_BYTES = 192 << 20
"""More than the caches hold: what was read so many bytes ago comes from memory again."""

BURST_BYTES = 16 << 20
LEAST_BYTES = 1 << 20
BURSTS = 3
ARITHMETIC_S = 0.0005


class Limits:
    """Probes with so many threads. Raises ConfigError where the native core is missing."""

    def __init__(self, threads: int) -> None:
        if core is None:
            raise ConfigError(f"there are no compiled kernels to measure: {reason}")
        self.pool: _cpu.ThreadPool = core.ThreadPool(threads)
        self.isa: _cpu.Isa = chosen_isa()
        self._memory = allocate(COLD_BYTES)
        self._memory[:] = 1
        self._next = 0

    def read_rates(self) -> list[float]:
        """Bytes per second of some bursts, each over memory that was not read for long."""
        rates = []
        for _ in range(BURSTS):
            part = self._memory[self._next : self._next + BURST_BYTES]
            self._next = (self._next + BURST_BYTES) % COLD_BYTES
            rates.append(core.read_rate(self.pool, self.isa, part))
        return rates

    def resident_rates(self, nbytes: int) -> list[float]:
        """Bytes per second of reading the same memory again and again, at least a part that takes
        long enough to be timed."""
        part = self._memory[: min(max(nbytes, LEAST_BYTES), COLD_BYTES)]
        rates = [core.read_rate(self.pool, self.isa, part) for _ in range(2 * BURSTS)]
        return rates[BURSTS:]

    def read_burst(self) -> None:
        """Read some memory that was not read for long, so that it takes the caches' room."""
        part = self._memory[self._next : self._next + BURST_BYTES]
        self._next = (self._next + BURST_BYTES) % COLD_BYTES
        core.read_rate(self.pool, self.isa, part)

    def arithmetic_rates(self, rate: _cpu.Rate) -> list[float]:
        """Operations per second of some bursts, on registers."""
        return [
            core.arithmetic_rate(self.pool, self.isa, rate, ARITHMETIC_S) for _ in range(BURSTS)
        ]
