"""A plan beside a serving engine: it works while that one has nothing to do."""

from __future__ import annotations

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from ockham.core.errors import ConfigError

POLL_S = 1.0
REST_S = 2.0
"""The server must have had nothing to do for so long."""
TIMEOUT_S = 5.0
MOST_BYTES = 4 << 20
GAUGES = ("ockham_num_requests_running", "ockham_num_requests_waiting")


class Beside:
    """Watches a server, and lets this process run only in idle time.

    The process takes the scheduling class for idle time where there is one (SCHED_IDLE of Linux):
    it computes nothing while anything else on its cores does. And `wait` returns only when the
    server has had no request for two seconds. Raises ConfigError if the server does not say what it
    does.
    """

    def __init__(self, url: str, api_key: str | None, tell: Callable[[str], None]) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/metrics"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._tell = tell
        try:
            self._busy = self._requests() > 0
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--beside {url}: {self._url} does not say whether the server is busy ({error}); "
                "name a running server of Ockham's, with --api-key if it has one."
            ) from error
        self._idle_since = time.monotonic() if not self._busy else float("inf")
        self._closed = threading.Event()
        self.waited_s = 0.0
        _only_when_idle()
        threading.Thread(target=self._watch, daemon=True, name="ockham-plan-beside").start()

    def wait(self) -> None:
        """Return when the server is idle. A server that is gone is idle."""
        began = time.monotonic()
        while not self._closed.is_set() and time.monotonic() - self._idle_since < REST_S:
            self._closed.wait(POLL_S)
        self.waited_s += time.monotonic() - began

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                busy = self._requests() > 0
            except (OSError, ValueError):
                busy = False
            if busy:
                self._idle_since = float("inf")
            elif self._busy:
                self._idle_since = time.monotonic()
            self._busy = busy

    def _requests(self) -> float:
        """Requests that run or wait. Raises OSError, or ValueError for an answer without them."""
        asked = urllib.request.Request(self._url, headers=self._headers)
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
            text = answer.read(MOST_BYTES).decode("utf-8", "replace")
        found = [
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(GAUGES)
        ]
        if not found:
            raise ValueError(f"it has no {GAUGES[0]}")
        return sum(found)


def _only_when_idle() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # another system, or it may not
        os.nice(19)
