"""How much of the processor others used while something of ours ran."""

from __future__ import annotations

import time
from types import TracebackType

import psutil


class Others:
    """A context manager; afterwards `share` is others' part of the time of `cores` cores.

    Ours are this process and the processes below it. Of those that ended meanwhile the time is
    counted once they have been waited for.
    """

    share: float

    def __init__(self, cores: int) -> None:
        self._cores = cores

    def __enter__(self) -> Others:
        self._start = (time.perf_counter(), _busy_s(), own_s())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        began, busy_before_s, own_before_s = self._start
        wall_s = time.perf_counter() - began
        others_s = (_busy_s() - busy_before_s) - (own_s() - own_before_s)
        self.share = min(1.0, max(0.0, others_s) / (wall_s * self._cores))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def own_s() -> float:
    """Processor time of this process and those below it, also of those that it has waited for."""
    own = psutil.Process()
    times = own.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in own.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return float(total)
