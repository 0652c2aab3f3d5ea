"""Threads that work out what may take long, beside the engine's steps."""

from __future__ import annotations

import heapq
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

_THREADS = 2
_MOST_ABANDONED = 8
"""Threads that may hang in work that nobody waits for, and be replaced by others."""
_WALL = 10
"""A late look has used its CPU time, or so many times that of wall time."""
PATIENCE_S = 0.01
"""What the engine's step waits for a look that is probably quick."""


@dataclass(order=True, slots=True)
class Look:
    """Work that was handed over. What is expected to be quick goes first."""

    expected_s: float
    number: int
    work: Callable[[], float] = field(compare=False)
    done: Future[float] = field(compare=False, default_factory=Future)
    begun_s: float | None = field(compare=False, default=None)
    clock: int = field(compare=False, default=0)
    begun_cpu_s: float = field(compare=False, default=0.0)
    abandoned: bool = field(compare=False, default=False)

    def begin(self) -> None:
        """This thread begins to work on it."""
        if sys.platform == "linux":
            self.clock = time.pthread_getcpuclockid(threading.get_ident())
            self.begun_cpu_s = time.clock_gettime(self.clock)
        self.begun_s = time.monotonic()

    def is_late(self, most_s: float) -> bool:
        """Whether it has been worked on, not waited for, longer than `most_s` of CPU time."""
        if self.begun_s is None or self.done.done():
            return False
        if time.monotonic() - self.begun_s > _WALL * most_s:
            return True
        try:
            return bool(self.clock) and time.clock_gettime(self.clock) - self.begun_cpu_s > most_s
        except OSError:  # its thread has just ended
            return False


class Background:
    """A few threads, started when they are needed. Work that hangs in C code can be abandoned: its
    thread ends with it, and another takes its place."""

    def __init__(self) -> None:
        self._waiting: list[Look] = []
        self._changed = threading.Condition()
        self._threads = self._free = self._abandoned = self._count = 0
        self._closed = False
        self._patience_s = PATIENCE_S

    def submit(self, expected_s: float, work: Callable[[], float]) -> Look:
        with self._changed:
            self._count += 1
            look = Look(expected_s, self._count, work)
            heapq.heappush(self._waiting, look)
            if self._free < len(self._waiting) and self._threads < _THREADS:
                self._start()
            self._changed.notify()
        return look

    def wait(self, look: Look) -> bool:
        """Whether it is done within `PATIENCE_S`. While one look takes longer, no other is waited
        for."""
        wait([look.done], self._patience_s)
        self._patience_s = PATIENCE_S if look.done.done() else 0.0
        return look.done.done()

    def abandon(self, look: Look) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            if look.begun_s is None or look.done.done() or look.abandoned:
                look.done.cancel()
            elif self._abandoned < _MOST_ABANDONED:
                look.abandoned = True
                self._abandoned += 1
                self._threads -= 1
                if self._waiting:
                    self._start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _start(self) -> None:
        self._threads += 1
        threading.Thread(target=self._run, name="ockham-grammar", daemon=True).start()

    def _run(self) -> None:
        while (look := self._take()) is not None:
            if look.done.set_running_or_notify_cancel():
                look.begin()
                try:
                    look.done.set_result(look.work())
                except BaseException as error:
                    look.done.set_exception(error)
            with self._changed:
                if look.abandoned:
                    self._abandoned -= 1
                    return
            del look  # or it and its grammar would be held until there is more to do

    def _take(self) -> Look | None:
        with self._changed:
            self._free += 1
            try:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                return None if self._closed else heapq.heappop(self._waiting)
            finally:
                self._free -= 1
