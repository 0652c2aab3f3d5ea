"""A plan beside a server works only while that one has nothing to do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ockham.core.errors import ConfigError
from ockham.plan import beside
from ockham.plan.beside import Beside


class Server(HTTPServer):
    """Says how many requests run, and remembers the keys that it was shown."""

    running = 0
    gauge = "ockham_num_requests_running"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        assert self.path == "/metrics"
        text = f'{self.server.gauge}{{model="m"}} {float(self.server.running)}\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(beside, "REST_S", 0.2)
    monkeypatch.setattr(beside, "POLL_S", 0.02)
    monkeypatch.setattr(os, "sched_setscheduler", lambda *args: None)  # of this process's tests
    found = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def test_it_waits_until_the_server_is_idle(server: Server) -> None:
    server.running = 1
    watched = Beside(f"http://127.0.0.1:{server.server_port}/v1", None, lambda line: None)
    waited = threading.Thread(target=watched.wait)
    waited.start()
    time.sleep(0.4)
    assert waited.is_alive()
    server.running = 0
    waited.join(10)
    assert not waited.is_alive()
    began = time.monotonic()
    watched.wait()  # it is idle still
    assert time.monotonic() - began < 0.2
    watched.close()


def test_it_waits_when_requests_come_again(server: Server) -> None:
    watched = Beside(f"http://127.0.0.1:{server.server_port}", "key", lambda line: None)
    watched.wait()
    server.running = 2
    time.sleep(0.3)
    waited = threading.Thread(target=watched.wait)
    waited.start()
    time.sleep(0.3)
    assert waited.is_alive()
    watched.close()
    waited.join(10)
    assert not waited.is_alive()
    assert watched.waited_s >= 0.3


def test_a_server_that_is_none_is_refused(server: Server) -> None:
    server.gauge = "another"
    with pytest.raises(ConfigError, match="does not say whether"):
        Beside(f"http://127.0.0.1:{server.server_port}", None, lambda line: None)
