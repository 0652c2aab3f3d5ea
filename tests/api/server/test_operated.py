"""A server as systemd runs it, with a log for programs: its socket, readiness, JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ockham.api.server.service_manager import ServiceManager
from ockham.core.errors import ConfigError
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import ROOT, wait_for

ACTIVATE = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'x'}\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'ockham', *sys.argv[2:]])"
)
"""What systemd does before it starts a service."""


class Service:
    """`ockham serve` on a socket that another process listens at, with someone to notify."""

    def __init__(self, model: Path, directory: Path, sock: socket.socket, *flags: str) -> None:
        self.log_path = directory / "log"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(directory / "notify"))
        self.notified.settimeout(60.0)
        flags = ("serve", str(model), *TINY_FLAGS, "--served-model-name", "tiny", *flags)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ACTIVATE, str(sock.fileno()), *flags],
                pass_fds=[sock.fileno()],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "NOTIFY_SOCKET": str(directory / "notify"),
                },
            )

    def told(self) -> list[str]:
        """What systemd is told next, line by line."""
        return self.notified.recv(4096).decode().splitlines()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.notified.close()


@pytest.fixture(scope="module")
def address() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture(scope="module")
def service(tiny, tmp_path_factory, address) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("operated")
    live = Service(tiny, directory, address, "--log-format", "json", "--log-requests")
    try:
        yield live
    finally:
        live.end()


def url(sock: socket.socket) -> str:
    return "http://{}:{}".format(*sock.getsockname())


def test_a_socket_of_systemd_is_served_and_readiness_is_told(service, address):
    # Who connects before the model is loaded waits, and is answered.
    assert httpx.get(f"{url(address)}/health", timeout=60).status_code == 200
    assert service.told() == ["READY=1", f"STATUS=Listening on {url(address)}"]


def test_what_systemd_passes_is_passed_to_no_other_process(service):
    for child in psutil.Process(service.process.pid).children(recursive=True):
        assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"} & set(
            child.environ()
        )
        assert not child.net_connections("tcp")


def test_each_line_of_the_log_is_an_object_with_the_request_in_fields(service, address):
    body = {"prompt": "a b", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    for name, more in (("fine-1", {}), ("wrong-1", {"n": 0})):
        httpx.post(
            f"{url(address)}/v1/completions", json=body | more, headers={"X-Request-Id": name}
        )

    def of(name: str) -> list[dict[str, Any]]:
        return [line for line in service.lines() if line.get("request_id") == name]

    (fine,) = wait_for(lambda: of("fine-1"), 5)
    (wrong,) = wait_for(lambda: of("wrong-1"), 5)
    assert fine["logger"] == "ockham.access"
    assert (fine["method"], fine["path"], fine["status"]) == ("POST", "/v1/completions", 200)
    assert fine["model"] == "tiny"
    assert "model" not in wrong
    assert (fine["generated_tokens"], fine["finish_reasons"]) == (3, ["length"])
    assert fine["duration_ms"] > 0
    assert wrong["status"] == 400
    assert wrong["refused"].startswith("n must be an integer")
    for line in service.lines():
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line["time"].endswith("Z")


def test_the_engine_writes_objects_too(service, address):
    """Its process is killed; what the server says of that, and what the next one loads."""
    engine = next(
        child
        for child in psutil.Process(service.process.pid).children()
        if "ockham.engine.process" in child.cmdline()
    )
    assert engine.environ()["OCKHAM_LOG_FORMAT"] == "json"
    engine.kill()
    said = wait_for(lambda: [x for x in service.lines() if x["level"] == "error"], 10)
    assert "SIGKILL" in said[0]["message"]
    wait_for(lambda: httpx.get(f"{url(address)}/health").status_code == 200, 20)


def test_the_end_is_told_and_the_socket_stays_with_systemd(service, address):
    running = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url(address)}/v1/completions", json=running, timeout=60) as stream:
        service.process.send_signal(signal.SIGTERM)
        assert "STOPPING=1" in service.told()
        with socket.create_connection(address.getsockname()) as late:
            late.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            # What runs is finished; who comes later is left to the process that systemd starts.
            assert stream.read().endswith(b"data: [DONE]\n\n")
            assert service.process.wait(20) == 0
            accepted, _ = address.accept()
            with accepted:
                assert accepted.recv(4) == b"GET "
    assert any(line["message"] == "Stopped." for line in service.lines())


def test_what_cannot_be_served_is_an_object_too(tmp_path, address):
    live = Service(tmp_path / "nowhere", tmp_path, address, "--log-format", "json")
    try:
        assert live.process.wait(30) != 0
        assert live.lines()[-1]["level"] == "critical"
        assert "nowhere" in live.lines()[-1]["message"]
    finally:
        live.end()


def test_a_unix_socket_is_served(tiny, tmp_path):
    path = str(tmp_path / "http")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        live = Service(tiny, tmp_path, sock)
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=60) as client:
                body = {"prompt": "a", "max_tokens": 2}
                assert client.post("http://ockham/v1/completions", json=body).status_code == 200
            assert live.told() == ["READY=1", f"STATUS=Listening on unix:{path}"]
        finally:
            live.end()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, None),  # another process's
        ({"LISTEN_PID": "me", "LISTEN_FDS": "0"}, None),
        ({"LISTEN_PID": "me", "LISTEN_FDS": "2"}, "passes 2 sockets"),
        ({"LISTEN_PID": "me", "LISTEN_FDS": "two"}, "passes two sockets"),
    ],
)
def test_only_one_socket_that_is_meant_for_this_process_is_taken(monkeypatch, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("me", str(os.getpid())))
    if reason is None:
        assert ServiceManager().socket is None
    else:
        with pytest.raises(ConfigError, match=reason):
            ServiceManager()
    assert "LISTEN_FDS" not in os.environ


def test_a_socket_that_does_not_listen_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        live = Service(tmp_path / "nowhere", tmp_path, sock)
        try:
            assert live.process.wait(30) == 2
            assert "does not listen for streams" in live.log_path.read_text()
        finally:
            live.end()


def test_nobody_who_is_deaf_or_gone_holds_up_the_server(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    ServiceManager().ready("x")
    assert "NOTIFY_SOCKET" not in os.environ
    ServiceManager().stopping()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0ockham-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@ockham-test-{os.getpid()}")
        manager = ServiceManager()
        for _ in range(1000):  # more than the socket holds
            manager.stopping()
        assert heard.recv(4096).startswith(b"STOPPING=1")
