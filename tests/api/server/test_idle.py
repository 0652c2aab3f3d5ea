"""A server that nobody asks uses no core."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.live import LiveServer

WATCHED_S = 3.0
MOST_SHARE = 0.01
"""Of one core."""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own figures are read")
def test_an_idle_server_uses_no_core(server: LiveServer) -> None:
    server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    server.wait_idle()
    time.sleep(0.5)  # what the last request has left to do
    before_s = used_s(server)
    time.sleep(WATCHED_S)
    after_s = used_s(server)
    assert before_s > 0
    assert after_s - before_s < MOST_SHARE * WATCHED_S


def used_s(server: LiveServer) -> float:
    """What all its processes have used of processors, by the scheduler's figures."""
    whole = psutil.Process(server.process.pid)
    every = [whole, *whole.children(recursive=True)]
    tasks = [task for each in every for task in Path(f"/proc/{each.pid}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
