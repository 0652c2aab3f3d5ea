"""Ends and new beginnings: shutdown, a dead engine, a stuck one."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer, wait_for
from tests.helpers.threads import switches, threads_of

STREAM = {"prompt": [5, 6, 7], "ignore_eos": True, "temperature": 0, "stream": True}


class Reader(threading.Thread):
    """Reads one stream to its end; `started` once the first event is there."""

    def __init__(self, server: LiveServer, **fields: object) -> None:
        super().__init__()
        self.url = f"{server.url}/v1/completions"
        self.body = {**STREAM, **fields}
        self.began = threading.Event()
        self.events: list[str] = []
        self.start()
        assert self.began.wait(20)

    def run(self) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", self.url, json=self.body, timeout=60) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    self.began.set()

    def error(self) -> str:
        """The message of the error that the stream ended with."""
        self.join(30)
        assert self.events[-1] == "[DONE]"
        return str(json.loads(self.events[-2])["error"]["message"])


@contextlib.contextmanager
def serving(tiny, directory, *flags: str) -> Iterator[LiveServer]:
    with LiveServer(tiny, directory, *TINY_FLAGS, *flags) as live:
        yield live


@pytest.fixture(scope="module")
def mortal(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    """A server whose engine the tests may kill and stop."""
    with serving(tiny, tmp_path_factory.mktemp("mortal"), "--stall-timeout", "2") as live:
        yield live


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(tiny, tmp_path):
    with serving(tiny, tmp_path) as live:
        reader = Reader(live, max_tokens=1500)
        live.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "SIGTERM" in live.log, 5)
        assert live.post("/v1/completions", {"prompt": "a"}).status_code == 503
        assert live.get("/health").status_code == 503
        reader.join(60)
        assert json.loads(reader.events[-2])["choices"][0]["finish_reason"] == "length"
        assert live.process.wait(10) == 0


def test_requests_that_outlast_the_shutdown_are_told_so(tiny, tmp_path):
    with serving(tiny, tmp_path, "--shutdown-timeout", "0.5") as live:
        reader = Reader(live, max_tokens=8000)
        live.process.send_signal(signal.SIGTERM)
        assert "shut down" in reader.error()
        assert live.process.wait(10) == 0


def test_a_second_signal_ends_the_server_at_once(tiny, tmp_path):
    with serving(tiny, tmp_path) as live:
        reader = Reader(live, max_tokens=8000)
        live.process.send_signal(signal.SIGINT)
        wait_for(lambda: "SIGINT" in live.log, 5)
        begin_s = time.monotonic()
        live.process.send_signal(signal.SIGINT)
        live.process.wait(15)
        assert time.monotonic() - begin_s < 10
        assert "shut down" in reader.error()
        assert "Traceback" not in live.log


def test_the_engine_ends_with_the_server(tiny, tmp_path):
    with serving(tiny, tmp_path) as live:
        engine = live.engine
        live.process.kill()
        live.process.wait()
        wait_for(lambda: not engine.is_running() or engine.status() == "zombie", 5)


def test_a_killed_engine_fails_its_requests_with_503_and_is_replaced(mortal):
    reader = Reader(mortal, max_tokens=8000)
    before = mortal.complete(prompt="a")["choices"]
    mortal.engine.kill()
    assert "killed by SIGKILL" in reader.error()
    wait_for(lambda: mortal.get("/health").status_code == 200, 20)
    assert mortal.complete(prompt="a")["choices"] == before


def test_while_the_engine_is_away_requests_are_503(mortal):
    mortal.engine.kill()
    wait_for(lambda: mortal.get("/health").status_code == 503, 5)
    response = mortal.post("/v1/completions", {"prompt": "a"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "service_unavailable"
    assert "retry-after" in response.headers
    wait_for(lambda: mortal.get("/health").status_code == 200, 20)


def test_counters_survive_the_engine(mortal):
    mortal.complete(prompt="a", max_tokens=5, ignore_eos=True)
    wait_for(lambda: mortal.metric("ockham_generation_tokens_total") >= 5, 5)
    before = mortal.metric("ockham_generation_tokens_total")
    mortal.engine.kill()
    wait_for(lambda: mortal.get("/health").status_code == 503, 5)
    wait_for(lambda: mortal.get("/health").status_code == 200, 20)
    mortal.complete(prompt="a", max_tokens=5, ignore_eos=True)
    wait_for(lambda: mortal.metric("ockham_generation_tokens_total") == before + 5, 5)
    assert mortal.metric("ockham_engine_restarts_total") >= 1


def test_health_fails_while_the_engine_is_stuck_and_work_waits(mortal):
    engine = mortal.engine
    reader = Reader(mortal, max_tokens=8000)
    engine.suspend()
    try:
        response = wait_for(lambda: _unhealthy(mortal), 10)
        assert "stuck" in response.json()["error"]["message"]
    finally:
        engine.resume()
    wait_for(lambda: mortal.get("/health").status_code == 200, 10)
    mortal.engine.kill()
    reader.join(30)
    wait_for(lambda: mortal.get("/health").status_code == 200, 20)


def test_health_stays_well_while_the_engine_makes_progress(server):
    """However slow it is: that is tested where the clock can be moved (engine/test_process.py)."""
    reader = Reader(server, max_tokens=1000)
    while reader.is_alive():
        assert server.get("/health").status_code == 200
        time.sleep(0.2)


def test_an_idle_engine_sleeps(server):
    """There is a whole second in which none of its threads wakes even once."""
    server.wait_idle()
    pid = server.engine.pid

    def counted() -> dict[str, list[str]]:
        return {thread: switches(pid, thread) for thread in threads_of(pid)}

    def sleeps_for_a_second() -> bool:
        before = counted()
        time.sleep(1.0)
        return counted() == before

    wait_for(sleeps_for_a_second, 20)


def test_the_engine_is_out_of_reach_of_the_terminals_signals(server):
    import os

    assert os.getsid(server.engine.pid) != os.getsid(server.process.pid)


def _unhealthy(server: LiveServer) -> httpx.Response | None:
    response = server.get("/health")
    return response if response.status_code == 503 else None


def test_no_process_is_left_behind(mortal):
    children = psutil.Process(mortal.process.pid).children(recursive=True)
    assert [child.status() for child in children].count("zombie") == 0
    assert len(children) == 2, "an engine, and a worker that renders chats"


def test_pins_are_restored_for_the_next_engine(tiny, tmp_path):
    with serving(tiny, tmp_path, "--pins", str(tmp_path / "pins.json")) as live:
        pinned = live.post("/v1/cache/pin", {"name": "text", "prompt": "a b c d " * 60}).json()
        live.engine.kill()
        wait_for(lambda: live.get("/health").status_code == 503, 5)
        wait_for(lambda: live.get("/health").status_code == 200, 20)
        wait_for(lambda: live.post("/v1/cache", {}).json()["pins"] == pinned["pins"], 10)
        usage = live.complete(prompt="a b c d " * 60 + "e", max_tokens=1)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= pinned["pins"][0]["tokens"] - 1
