"""What the log says of requests: why they were refused, never what was in them; and what the engine
does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import pytest

from ockham.api.server.throughput import describe
from ockham.core.ledger import Ledger
from ockham.engine.messages import Stats
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import ROOT, LiveServer, wait_for

SECRET = "SECRETWORD"
SAID = [{"role": "user", "content": SECRET}]


def line_of(server: LiveServer, name: str) -> str:
    """The line of the access log about the request of this id."""
    (line,) = wait_for(
        lambda: [each for each in server.log.splitlines() if f" ms {name}" in each], 5
    )
    return line


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/completions", {"prompt": "a", "n": 0}, "n must be an integer in [1, 1024], got 0."),
        ("/v1/completions", {"prompt": "a", "colour": 1}, "colour is not a field"),
        ("/v1/completions", {"prompt": "a", "model": "gpt-4o"}, "no model 'gpt-4o' here"),
        ("/v1/completions", {"prompt": [99999]}, "token id 99999"),
        ("/v1/images", {}, "There is no /v1/images here"),
    ],
)
def test_the_log_says_why_a_request_was_refused(server, path, body, reason):
    name = f"why-{abs(hash((path, reason)))}"
    response = server.post(path, body, headers={"X-Request-Id": name})
    line = line_of(server, name)
    assert f" {response.status_code} " in line
    assert reason in line
    assert len(line) < 400


def test_a_request_that_was_answered_has_no_reason(server):
    server.post("/tokenize", {"prompt": "a"}, headers={"X-Request-Id": "fine"})
    assert line_of(server, "fine").endswith(" fine")


BODIES = [
    {"prompt": SECRET, "n": 0},
    {"prompt": SECRET * 20_000},
    {"prompt": [SECRET, 5]},
    {"prompt": [SECRET, ""]},
    {"prompt": {SECRET: SECRET}},
    {"prompt": "a", "verbosity": f"it's {SECRET} isn't"},
    {"prompt": "a", "verbosity": f'"{SECRET}'},
    {"prompt": "a", "verbosity": SECRET * 100},
    {"prompt": "a", "tools": [{"name": SECRET, "x": [SECRET * 20]}]},
    {"prompt": "a", "prediction": {"content": SECRET}},
    {"prompt": "a", "stop": [SECRET, 5]},
    {"prompt": "a", "logit_bias": {SECRET: 1}},
    {"prompt": "a", "reuse": SECRET},
    {"prompt": "a", "structured_outputs": {"regex": f"({SECRET}"}},
    {"prompt": "a", "structured_outputs": {"grammar": f"start: {SECRET}"}},
    {"prompt": "a", "structured_outputs": {"json": f'{{"type": "{SECRET}"}}'}},
    {"prompt": "a", "structured_outputs": {"json": {"type": SECRET}}},
    {"prompt": "a", "structured_outputs": {"json": f"{{{SECRET}"}},
    {"messages": [{"role": SECRET, "content": "a"}]},
    {"messages": [{"role": "user", "content": [{"type": SECRET}]}]},
    {"messages": SAID, "response_format": {"type": SECRET}},
    {"messages": SAID, "chat_template_kwargs": {"messages": SECRET}},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": SECRET}}]}]},
]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_the_log_never_says_what_was_asked(server, number):
    body, name = BODIES[number], f"secret-{number}."
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = server.post(path, body, headers={"X-Request-Id": name})
    assert response.status_code == 400
    assert ": " in line_of(server, name)
    assert SECRET not in server.log


def test_what_fails_in_the_middle_of_a_stream_is_in_the_log(server):
    word = server.post("/detokenize", {"tokens": [300]}).json()["prompt"]
    body = {"prompt": "a", "allowed_token_ids": [300], "bad_words": [word], "stream": True}
    server.post("/v1/completions", body, headers={"X-Request-Id": "masked"})
    assert "No token could be chosen" in line_of(server, "masked")


@pytest.fixture(scope="module")
def quiet(tiny, tmp_path_factory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("quiet")
    with LiveServer(tiny, directory, *TINY_FLAGS, "--api-key", SECRET) as live:
        yield live


def test_no_key_is_in_the_log(quiet):
    for given in (SECRET, SECRET + "1"):
        quiet.get("/v1/models", headers={"Authorization": f"Bearer {given}"})
    wait_for(lambda: "The API key is missing or wrong" in quiet.log, 5)
    assert SECRET not in quiet.log


def test_models_are_counted_under_the_path_of_their_route(server):
    server.get("/v1/models/tiny")
    assert server.metric("ockham_http_requests_total", route="/v1/models/{model}") >= 1
    server.get("/v1/models/other")
    assert "models/other" not in server.get("/metrics").text


def stats(steps: int, running: int = 0, waiting: int = 0, **counted: int) -> Stats:
    return Stats(steps=steps, running=running, waiting=waiting, ledger=Ledger(**counted))


def test_the_line_of_throughput_says_what_was_gained():
    before = stats(5, prompt_tokens=100, prompt_tokens_reused=50, generated_tokens=10)
    now = stats(*(9, 2, 1), prompt_tokens=300, prompt_tokens_reused=200, generated_tokens=110)
    assert describe(before, now, 10.0) == (
        "2 running, 1 waiting; 20.0 prompt and 10.0 generated tokens/s; 75% of prompt tokens from "
        "the cache"
    )


def test_there_is_no_line_of_throughput_without_traffic():
    idle = stats(5, prompt_tokens=100)
    assert describe(idle, idle, 10.0) is None


def test_an_engine_that_was_started_anew_counts_from_zero():
    line = describe(stats(900, prompt_tokens=10**6), stats(1, prompt_tokens=50), 10.0)
    assert line is not None
    assert "5.0 prompt" in line


def test_throughput_is_in_the_log_while_there_is_traffic(server):
    body = {"prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": True}

    def said() -> bool:
        server.post("/v1/completions", body)
        return "generated tokens/s" in server.log

    wait_for(said, 30)


@pytest.mark.parametrize(("level", "expected"), [("warning", False), ("info", True)])
def test_the_level_of_the_log_can_be_chosen(tiny, tmp_path, level, expected):
    command = "from ockham.cli.main import main; main()"
    flags = ("--port", "0", *TINY_FLAGS, "--log-level", level)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", str(tiny), *flags],
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        wait_for(lambda: answers(process.pid), 60)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert ("Listening on" in (tmp_path / "log").read_text()) == expected


def answers(pid: int) -> bool:
    """Whether a server answers: it listens before its model is loaded."""
    ports = [c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
    with contextlib.suppress(httpx.HTTPError):
        return any(httpx.get(f"http://127.0.0.1:{port}/health").is_success for port in ports)
    return False
