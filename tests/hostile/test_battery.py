"""While the server is attacked, nobody else waits: a clock says so for every kind of request.

A stream and /health are watched from a process of their own. The suite runs a selection with bounds
that a busy machine keeps; `make hostile` (`OCKHAM_HOSTILE=1`) runs all of it, over and over for
about ten minutes, with the bound that a quiet machine keeps.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.helpers.live import LiveServer, wait_for
from tests.helpers.raw import chunk, connect, exchange, idle_connections, post, status
from tests.helpers.tiny import tiny_llama
from tests.hostile.attacks import ATTACKS, COMPLETIONS, SLOW_GRAMMAR, Attack

LONG = bool(os.environ.get("OCKHAM_HOSTILE"))
BOUND_S = 0.25 if LONG else 1.5
"""Longest gap and longest answer, beyond what the same stream has without an attack."""
BASELINES = 3.0
"""So many times the longest of those is a busy machine's doing."""
WAKINGS = 5.0
"""And in the suite, so many times what a thread of the clock's own was late meanwhile: an answer
takes several turns of several processes."""
TRIES = 3
"""A hold-up that is the attack's doing is there each time; one of a busy machine is not."""
ROUNDS = 5 if LONG else 1
AT_ONCE = 8
STALL_S = 5
SEED = 11
VICTIM = {"prompt": [5, 6, 7], "max_tokens": 8000, "ignore_eos": True, "stream": True}
FLAGS = (
    *("--kv-cache-memory-bytes", "64M", "--no-access-log", "--stall-timeout", str(STALL_S)),
    *("--reuse", "prefix,chunk", "--max-bodies-bytes", str(64 << 20)),
)
chosen = [attack for attack in ATTACKS if LONG or attack.quick]


class Clock:
    """The watching process; see `tests.hostile.clock`."""

    def __init__(self, url: str) -> None:
        script = Path(__file__).with_name("clock.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), url, json.dumps(VICTIM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.take()
        wait_for(lambda: self.take()["events"], 30)
        time.sleep(3.0)
        quiet = self.take()
        self.bound_s = BOUND_S + BASELINES * max(quiet["gap_s"], quiet["health_s"])

    def take(self) -> dict[str, Any]:
        """What was seen since it was taken last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seen: dict[str, Any] = json.loads(self._process.stdout.readline())
        return seen

    def check(self, may_fail: bool = False) -> bool:
        """Nobody has waited since it was taken last, and both were there all the time. False if
        somebody has waited too long and that `may_fail`."""
        time.sleep(0.2)  # what the last request did to them shows
        seen = self.take()
        bound_s = self.bound_s + (0.0 if LONG else WAKINGS * seen["machine_s"])
        print(f"gap {seen['gap_s']:.3f} s, health {seen['health_s']:.3f} s; {bound_s:.3f} s")
        if may_fail and max(seen["gap_s"], seen["health_s"]) >= bound_s:
            return False
        assert not seen["faults"]
        assert seen["events"]
        assert seen["answers"]
        assert seen["gap_s"] < bound_s, seen
        assert seen["health_s"] < bound_s, seen
        return True

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    return tiny_llama(directory, tokenizer=True, max_position_embeddings=8192)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all attacks, which it must outlive."""
    directory = tmp_path_factory.mktemp("attacked")
    with LiveServer(checkpoint, directory, *FLAGS, descriptors=256) as live:
        engine = live.engine.pid
        yield live
        assert live.engine.pid == engine, "the engine was restarted"
        live.wait_idle(30)
        time.sleep(STALL_S + 1)  # a stream that was forgotten would now count as stuck
        assert live.get("/health").status_code == 200
        assert "Traceback" not in live.log


@pytest.fixture(scope="module")
def clock(server: LiveServer) -> Iterator[Clock]:
    watching = Clock(server.url)
    yield watching
    watching.stop()


def send(server: LiveServer, path: str, body: bytes) -> int:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
    assert response.status_code < 500 or response.status_code == 503, response.text
    return response.status_code


@pytest.mark.parametrize("attack", chosen, ids=[attack.name for attack in chosen])
def test_nobody_waits_for(server: LiveServer, clock: Clock, attack: Attack) -> None:
    bodies = attack.bodies() * ROUNDS  # made before the clock looks
    at_once = max(1, min(AT_ONCE, (48 << 20) // max(map(len, bodies))))
    for left in reversed(range(TRIES)):
        clock.take()
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(lambda body: send(server, attack.path, body), bodies))
        assert set(answers) <= attack.right, answers
        if clock.check(may_fail=left > 0):
            break


def test_nobody_waits_for_connections_that_say_nothing(server: LiveServer, clock: Clock) -> None:
    clock.take()
    for _ in range(ROUNDS):
        with idle_connections(server.url, 400):
            time.sleep(1.0)
    clock.check()


def test_nobody_waits_for_heads_that_never_end(server: LiveServer, clock: Clock) -> None:
    clock.take()
    with idle_connections(server.url, 150) as held:
        for _ in range(20 * ROUNDS):
            for sock in held:
                sock.sendall(b"G")
            time.sleep(0.05)
    clock.check()


def test_nobody_waits_for_bodies_that_never_end(server: LiveServer, clock: Clock) -> None:
    size = 15 << 20
    sent = post(COMPLETIONS, f"Content-Length: {size + 1}") + b" " * size
    clock.take()
    with idle_connections(server.url, 12) as held:
        for sock in held:
            try:
                sock.sendall(sent)
            except OSError:
                continue  # refused meanwhile
    clock.check()


def test_nobody_waits_for_bodies_of_tiny_chunks(server: LiveServer, clock: Clock) -> None:
    sent = post(COMPLETIONS, "Transfer-Encoding: chunked", body=chunk(b" ") * 40_000)
    for left in reversed(range(TRIES)):
        clock.take()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda _: exchange(server.url, sent), range(32 * ROUNDS)))
        assert set(map(status, answers)) == {400}
        if clock.check(may_fail=left > 0):
            break


def test_nobody_waits_for_requests_that_come_all_at_once(server: LiveServer, clock: Clock) -> None:
    sent = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 500
    clock.take()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(
            pool.map(lambda _: exchange(server.url, sent, half_close=True), range(8 * ROUNDS))
        )
    clock.check()
    assert all(answer.count(b"HTTP/1.1 200") == 500 for answer in answers)


def test_nobody_waits_for_noise(server: LiveServer, clock: Clock) -> None:
    """Requests in which bytes were changed, lost or doubled are answered, or cut, and no fault."""
    rng = random.Random(SEED)
    body = json.dumps({"prompt": "abc", "max_tokens": 2, "logprobs": 1}).encode()
    whole = (
        post(COMPLETIONS, f"Content-Length: {len(body)}", body=body),
        post(COMPLETIONS, "Transfer-Encoding: chunked", body=chunk(body) + b"0\r\n\r\n"),
        b"GET /v1/models/tiny?a=b HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\n\r\n",
    )

    def noise() -> bytes:
        sent = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(sent))
            sent[at : at + rng.randrange(3)] = rng.choice(
                (rng.randbytes(1), rng.randbytes(8), b"\n", b"\r", b"\0", b" ", bytes(sent[at:]))
            )
        return bytes(sent)

    all_noise = [noise() for _ in range(200 * ROUNDS)]
    clock.take()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(
            pool.map(lambda sent: exchange(server.url, sent, half_close=True), all_noise)
        )
    clock.check()
    assert not [answer for answer in answers if answer and 500 <= status(answer) != 503]


def test_nobody_waits_for_clients_that_leave(server: LiveServer, clock: Clock) -> None:
    body = json.dumps({**VICTIM, "n": 4, "logprobs": 5}).encode()
    sent = post(COMPLETIONS, f"Content-Length: {len(body)}", body=body)
    clock.take()
    for _ in range(40 * ROUNDS):
        with connect(server.url) as sock:
            sock.sendall(sent)
            time.sleep(0.02)
    clock.check()


TEMPLATES = {
    "loops for ever": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
    "{% endfor %}",
    "calls itself": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "makes gigabytes": "{{ 'x' | center(3000000000) }}",
    "doubles": "{% set ns = namespace(x='xx') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
}


@pytest.mark.parametrize("name", TEMPLATES if LONG else ["loops for ever", "calls itself"])
def test_nobody_waits_for_a_template_that(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Only the operator's checkpoint can do this; every request would, and nobody else may feel
    it."""
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "chat_template.jinja").write_text(TEMPLATES[name])
    chat = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}).encode()
    with LiveServer(model, tmp_path, *FLAGS) as live:
        watching = Clock(live.url)
        try:
            answers = [send(live, "/v1/chat/completions", chat) for _ in range(2 * ROUNDS)]
            watching.check()
        finally:
            watching.stop()
        assert set(answers) == {400}
        assert "Traceback" not in live.log


def test_nothing_is_left_of_a_server_that_was_killed(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever a request made it start ends with it, also in the middle of a grammar's trial."""
    live = LiveServer(checkpoint, tmp_path, *FLAGS)
    asked = {"prompt": "a", "structured_outputs": {"grammar": SLOW_GRAMMAR % 16}}
    process = psutil.Process(live.process.pid)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(live.post, COMPLETIONS, asked)
        wait_for(lambda: len(process.children(recursive=True)) > 1 or pending.done(), 10)
        family = process.children(recursive=True)
        live.process.kill()
        live.process.wait()
        pending.exception()
    _, alive = psutil.wait_procs(family, timeout=10)
    for left in alive:
        left.kill()
    assert not alive
