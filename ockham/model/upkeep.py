"""What is left to do for a model that already answers: in the background, at low priority."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable

from ockham.core.arrays import Array
from ockham.kernels.mapping import settle
from ockham.kernels.memory import as_bytes

DELAY_S = 1.0
"""Wait so long first: the first token is on its way."""

EXIT_WAIT_S = 10.0
"""At the end of the process wait at most so long for what should not be lost."""

NICENESS = 10


class Upkeep:
    """One job in a thread of its own. `job(stop)` looks at `stop` every few milliseconds and ends,
    leaving nothing half done, when it is set; it raises nothing.

    At the end of the process a job that is `lasting` (it writes a file, say) is waited for, any
    other is stopped.
    """

    def __init__(self, job: Callable[[threading.Event], None], *, lasting: bool) -> None:
        self._job = job
        self._lasting = lasting
        self._pid = os.getpid()
        self._stop, self._now = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ockham-upkeep", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def wait(self, seconds: float | None = None) -> None:
        """Do it now, and wait until it is done, or for so many seconds."""
        self._now.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        self._now.wait(DELAY_S)
        with contextlib.suppress(OSError, AttributeError):  # by thread only on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        if not self._stop.is_set():
            self._job(self._stop)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return  # forked: the thread is the other process's
        if self._lasting:
            with contextlib.suppress(KeyboardInterrupt):
                self.wait(EXIT_WAIT_S)
        self._stop.set()
        self.wait(EXIT_WAIT_S)


def settling(arrays: list[Array]) -> Callable[[threading.Event], None]:
    """The job that moves mapped arrays into huge pages (see kernels.mapping)."""

    def job(stop: threading.Event) -> None:
        for array in arrays:
            memory, done = as_bytes(array), 0
            while done < len(memory):
                moved = 0 if stop.is_set() else settle(memory, done)
                if not moved:
                    return
                done += moved

    return job
