"""How much of the processors' time others take, while something is measured."""

from __future__ import annotations

import os
from pathlib import Path

STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)
"""Of the numbers of the line `cpu` (proc(5)): user, nice, system, irq, softirq, steal. Guests are
among the first two."""


class Others:
    """What programs beside this one, and other machines on the same host, take from now on. This
    program's ended children are its own."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._began, self._own = self._read(), _own_s()

    def share(self) -> float | None:
        """Of all processors' time since this was made, from 0 to 1; None where the system does not
        say it."""
        if self._began is None or (now := self._read()) is None:
            return None
        busy, every = (late - early for late, early in zip(now, self._began, strict=True))
        if every <= 0:
            return None
        own = (_own_s() - self._own) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - own) / every))

    def _read(self) -> tuple[int, int] | None:
        """The busy ticks and all ticks of all processors so far."""
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()
            ticks = [int(each) for each in fields[1:9]]
        except (OSError, ValueError):
            return None
        if fields[:1] != ["cpu"] or len(ticks) < 8:
            return None
        return sum(ticks[place] for place in _BUSY), sum(ticks)


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
