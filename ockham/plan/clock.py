"""The clock of a simulation, which moves on by what is predicted and not by what passes."""

from __future__ import annotations

from time import sleep, thread_time

from ockham.core.clock import Clock


class VirtualClock:
    """Seconds of a simulation.

    What a simulation does not compute is added as it is predicted (`add`). What it does as the real
    engine would, scheduling and bookkeeping, is timed by this thread's own processor time, which
    other programs do not change, times `factor`, and within steps times `cold` too. A factor of 0
    leaves it out, and then a simulation gives the same seconds every time: what steps take beside
    the backend is then told (`owe`), and passes when the step ends.
    """

    def __init__(self, factor: float = 1.0, cold: float = 1.0) -> None:
        self._now_s = 0.0
        self._factor, self._cold = factor, cold
        self._of_now = factor
        self._owed_s = 0.0
        self._mark_s = thread_time()

    def __call__(self) -> float:
        if self._factor:
            mark_s = thread_time()
            self._now_s += self._of_now * (mark_s - self._mark_s)
            self._mark_s = mark_s
        return self._now_s

    def stepping(self, begins: bool) -> None:
        """A step begins, or is over."""
        self()
        self._of_now = self._factor * self._cold if begins else self._factor
        self._now_s += self._owed_s
        self._owed_s = 0.0

    def owe(self, seconds: float) -> None:
        """The step that is under way takes so much more, if that is not timed."""
        if not self._factor:
            self._owed_s += seconds

    def add(self, seconds: float) -> None:
        """So much passes."""
        self._now_s += seconds

    def resume(self) -> None:
        """What this thread did since the clock was last asked was the simulation's own work."""
        if self._factor:
            self._mark_s = thread_time()

    def wait_until(self, moment_s: float) -> None:
        """Nothing happens until then."""
        self._now_s = max(self(), moment_s)


class RealClock:
    """The clock of whoever really waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self) -> float:
        return self._clock()

    def stepping(self, begins: bool) -> None:
        """A step begins, or is over: nothing changes."""

    def wait_until(self, moment_s: float) -> None:
        """Sleep until then."""
        while (left_s := moment_s - self._clock()) > 0.0:
            sleep(left_s)
