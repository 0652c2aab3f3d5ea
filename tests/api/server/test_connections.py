"""Connections and bodies that are too many, too slow or too large; who is served beside them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ockham.api.server.room import (
    KEPT_CONNECTIONS,
    OWN_DESCRIPTORS,
    Room,
    Seldom,
    connection_bound,
)
from ockham.core.errors import ConfigError
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer, wait_for
from tests.helpers.raw import chunk, connect, exchange, idle_connections, post, read_all, status

MIB = 1 << 20
DESCRIPTORS = 256


@pytest.fixture(scope="module")
def hasty(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    """A server with little patience and a small budget, and no more than 256 descriptors."""
    flags = (
        *("--header-timeout", "1", "--body-timeout", "2", "--idle-timeout", "1"),
        *("--max-bodies-bytes", str(4 * MIB), "--max-body-bytes", str(2 * MIB)),
    )
    directory = tmp_path_factory.mktemp("hasty")
    with with_few_descriptors(tiny, directory, *flags) as live:
        yield live


@pytest.fixture(scope="module")
def patient(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    """A server that waits long, with no more than 256 descriptors."""
    flags = ("--header-timeout", "600", "--idle-timeout", "600")
    directory = tmp_path_factory.mktemp("patient")
    with with_few_descriptors(tiny, directory, *flags) as live:
        yield live


def with_few_descriptors(model: Path, directory: Path, *flags: str) -> LiveServer:
    """A server that may have `DESCRIPTORS` file descriptors."""
    return LiveServer(model, directory, *TINY_FLAGS, *flags, descriptors=DESCRIPTORS)


def healthy(server: LiveServer) -> bool:
    """Whether a stranger is told that all is well."""
    return httpx.get(f"{server.url}/health", timeout=5).status_code == 200


def unfinished(path: str, size_bytes: int) -> bytes:
    """A request that promises a body of this size and sends nothing of it."""
    return post(path, f"Content-Length: {size_bytes}")


def test_more_idle_connections_than_descriptors_leave_health_answering(patient):
    with idle_connections(patient.url, 400):
        for _ in range(5):
            assert healthy(patient)
        assert patient.complete(prompt="a")["choices"]
        assert len(patient.log.splitlines()) < 100
    assert psutil.Process(patient.process.pid).num_fds() <= DESCRIPTORS


def test_requests_that_never_end_leave_room_for_whoever_watches(patient):
    most = DESCRIPTORS - OWN_DESCRIPTORS - KEPT_CONNECTIONS
    with idle_connections(patient.url, most) as held:
        for sock in held:
            sock.sendall(unfinished("/v1/completions", 1000))
        response = wait_for(lambda: refused_by(patient), 10)
        assert response.json()["error"]["code"] == "too_many_connections"
        assert int(response.headers["retry-after"]) > 0
        assert healthy(patient)
        assert httpx.get(f"{patient.url}/metrics").status_code == 200
        with idle_connections(patient.url, 100):
            assert healthy(patient)
    wait_for(lambda: refused_by(patient) is None, 10)


def refused_by(server: LiveServer) -> httpx.Response | None:
    response = httpx.get(f"{server.url}/version")
    return response if response.status_code == 503 else None


def test_the_one_that_says_nothing_longest_makes_room():
    closed: list[int] = []

    class Guest:
        def __init__(self, number: int) -> None:
            self.number = number

        def evict(self) -> None:
            closed.append(self.number)
            room.count -= 1

    room = Room(4)
    guests = [Guest(number) for number in range(4 + KEPT_CONNECTIONS)]
    for guest in guests:
        assert room.make_room()
        room.count += 1
        room.is_idle(guest)
    room.is_busy(guests[0])
    room.is_idle(guests[1])  # it was idle already, and is so for as long as before
    assert room.make_room()
    assert closed == [1]


def test_a_room_of_busy_ones_takes_nobody_more():
    room = Room(1)
    room.count = 1 + KEPT_CONNECTIONS
    assert not room.make_room()


def test_a_request_beyond_the_bound_is_not_served_unless_it_is_kept_for():
    room = Room(1)
    with room.serve("/v1/completions") as first, room.serve("/v1/completions") as second:
        assert first
        assert not second
        with room.serve("/health") as watcher:
            assert watcher
    with room.serve("/v1/completions") as third:
        assert third


def test_the_bound_on_connections_follows_from_the_descriptors():
    assert connection_bound(None, 1088, 1 << 20) == 4096
    assert connection_bound(None, 9000, 1 << 20) == 9000
    assert connection_bound(None, 1088, 1024) == 1024 - OWN_DESCRIPTORS - KEPT_CONNECTIONS
    assert connection_bound(100, 1088, 1024) == 100
    with pytest.raises(ConfigError, match="ulimit -n"):
        connection_bound(1000, 1088, 1024)
    with pytest.raises(ConfigError, match="ulimit -n"):
        connection_bound(None, 1088, 64)


def test_the_soft_limit_of_descriptors_becomes_the_hard_one(server):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = psutil.Process(server.process.pid)
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)


def test_a_connection_that_says_nothing_is_closed(hasty):
    begin_s = time.monotonic()
    assert exchange(hasty.url, b"") == b""
    assert 0.5 < time.monotonic() - begin_s < 10


def test_a_head_that_comes_drop_by_drop_is_408(hasty):
    begin_s = time.monotonic()
    with connect(hasty.url) as sock:
        for byte in b"GET /health HTTP/1.1\r\nX: " + b"y" * 1000:
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
            if time.monotonic() - begin_s > 10:
                break
        assert status(read_all(sock)) == 408
    assert time.monotonic() - begin_s < 10


def test_a_body_that_comes_drop_by_drop_is_408(hasty):
    with connect(hasty.url) as sock:
        sock.sendall(unfinished("/v1/completions", 1000) + b'{"prompt"')
        answer = read_all(sock)
    assert status(answer) == 408
    assert b"connection: close" in answer.lower()


def test_a_connection_without_another_request_is_closed(hasty):
    with connect(hasty.url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        begin_s = time.monotonic()
        assert status(read_all(sock)) == 200
    assert time.monotonic() - begin_s < 10


def test_what_follows_a_body_that_nobody_reads_is_not_waited_for(hasty):
    with connect(hasty.url) as sock:
        sock.sendall(unfinished("/no/such/route", 10**6))
        assert status(read_all(sock)) == 404


def test_a_client_sees_why_its_large_body_is_refused(hasty):
    for _ in range(5):
        with connect(hasty.url) as sock:
            sock.sendall(unfinished("/v1/completions", 3 * MIB))
            sock.sendall(b" " * 3 * MIB)
            answer = read_all(sock)
        assert status(answer) == 413
        assert b"request_too_large" in answer


def test_a_body_too_large_is_413_before_it_is_sent(hasty):
    answer = exchange(hasty.url, unfinished("/v1/completions", 3 * MIB))
    assert status(answer) == 413


def test_a_body_in_chunks_is_413_once_it_is_too_large(hasty):
    parts = chunk(b" " * 65536) * 40
    answer = exchange(hasty.url, post("/v1/completions", "Transfer-Encoding: chunked", body=parts))
    assert status(answer) == 413


def send_most(url: str, coding: str, size_bytes: int) -> socket.socket:
    """A connection with a body of which the end is missing."""
    sock = connect(url)
    if coding == "chunked":
        data = post("/v1/completions", "Transfer-Encoding: chunked")
        data += chunk(b" " * 65536) * (size_bytes // 65536)
    else:
        data = unfinished("/v1/completions", size_bytes + 1) + b" " * size_bytes
    with contextlib.suppress(OSError):
        sock.sendall(data)
    return sock


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_bodies_have_a_budget_together_and_give_it_back(hasty, coding):
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(send_most(hasty.url, coding, 2 * MIB - 65536)) for _ in range(4)
        ]
        with concurrent.futures.ThreadPoolExecutor(len(held)) as pool:
            answers = list(pool.map(read_all, held))
    statuses = sorted(map(status, answers))
    assert statuses[-1] == 503
    assert statuses[0] == 408, "those within the budget ran out of time"
    over = next(answer for answer in answers if status(answer) == 503)
    assert b"too_many_bytes" in over
    assert b"retry-after" in over.lower()
    large = {"prompt": "a " * 300_000, "max_tokens": 1}
    wait_for(lambda: hasty.post("/v1/completions", large).status_code != 503, 10)


def test_a_small_request_is_served_beside_bodies_that_fill_the_budget(hasty):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(send_most(hasty.url, "length", 2 * MIB - 65536))
        assert hasty.complete(prompt="a" * 1000)["choices"]


def test_unfinished_bodies_cost_what_the_budget_allows_and_no_longer_than_they_live(tiny, tmp_path):
    flags = ("--max-bodies-bytes", str(64 * MIB), "--no-access-log")
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, *flags) as live:
        process = psutil.Process(live.process.pid)
        assert live.complete(prompt="a")["choices"]
        before = process.memory_info().rss
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(send_most(live.url, "length", 15 * MIB))
            time.sleep(1.0)
            during = process.memory_info().rss
            assert healthy(live)
        wait_for(lambda: process.memory_info().rss < before + 16 * MIB, 15)
    assert during < before + 64 * MIB + 48 * MIB


def test_lines_that_strangers_provoke_come_once_a_second():
    seldom = Seldom()
    records = [
        logging.LogRecord("x", logging.WARNING, "", 0, "%d open", (number,), None)
        for number in range(1000)
    ]
    assert [seldom.filter(record) for record in records].count(True) <= 2
    time.sleep(1.05)
    assert seldom.filter(records[0])
    assert "left out" in records[0].getMessage()


def test_running_out_of_descriptors_is_one_line_a_second(tiny, tmp_path):
    """Connections are bounded so that this does not happen: here somebody takes descriptors away
    after the server has started."""
    with with_few_descriptors(tiny, tmp_path, "--no-access-log") as live:
        process = psutil.Process(live.process.pid)
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 8, DESCRIPTORS))
        lines = len(live.log.splitlines())
        cpu_s = sum(process.cpu_times()[:2])
        with idle_connections(live.url, 60):
            time.sleep(3.0)
            assert healthy(live)
        assert len(live.log.splitlines()) - lines <= 6
        assert "Traceback" not in live.log
        assert "ulimit -n" in live.log
        assert sum(process.cpu_times()[:2]) - cpu_s < 1.5
        assert live.complete(prompt="a")["choices"]


def test_a_client_that_never_reads_its_answer_does_not_keep_the_connection(hasty):
    text = "a1 b2 c3 d4 e5 " * 60_000
    body = json.dumps({"prompt": text, "return_token_strs": True}).encode()
    fds = psutil.Process(hasty.process.pid).num_fds
    before = fds()
    sock = connect(hasty.url)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with sock:
        sock.sendall(post("/tokenize", f"Content-Length: {len(body)}", body=body))
        wait_for(lambda: fds() > before, 5)
        wait_for(lambda: fds() <= before, 25)
