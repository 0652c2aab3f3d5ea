"""Clocks that tests move, so that no test waits for seconds or depends on how long they are."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Clock:
    """In the place of the module `time`: it stands still but for what it is moved by."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic

    def move(self, seconds: float) -> None:
        self.now_s += seconds


class _Selector(selectors.DefaultSelector):
    """Moves the clock where others wait for time to pass."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits for what nobody will do"
        if not ready:
            self._clock.move(max(0.0, timeout))
        return ready


class MovedLoop(asyncio.SelectorEventLoop):
    """An event loop of one thread that sleeps by moving its clock."""

    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(_Selector(self._clock))

    def time(self) -> float:
        return self._clock.now_s


def run_moved(work: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` would give; nothing in it may wait for other threads or processes."""
    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        return runner.run(work)
