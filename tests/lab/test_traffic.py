"""The client sends at the right times, continues chats, and tells what went wrong; the server here
is a fake one whose every answer is known."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ockham.core.errors import OckhamError
from ockham.lab.traffic import Answer, Sending, Server, Traffic, send
from ockham.lab.workloads import Request

Reply = Callable[["_Handler", dict[str, Any]], None]


class _Handler(BaseHTTPRequestHandler):
    server: _Fake

    def do_GET(self) -> None:
        self.write(b'{"data": [{"id": "fake"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((time.perf_counter(), self.path, body))
        self.server.reply(self, body)

    def write(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class _Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.asked: list[tuple[float, str, dict[str, Any]]] = []


@contextmanager
def serving(reply: Reply) -> Iterator[_Fake]:
    fake = _Fake(reply)
    thread = threading.Thread(target=fake.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.shutdown()
        fake.server_close()


def ask(fake: _Fake, requests: list[Request], how: Sending | None = None) -> Traffic:
    server = Server(f"http://127.0.0.1:{fake.server_port}", timeout_s=10.0)
    return asyncio.run(send(server, requests, how or Sending()))


def two_pieces(handler: _Handler, body: dict[str, Any]) -> None:
    """A role, then two pieces 50 ms apart, and the usage."""
    handler.write(b"")
    chat = "messages" in body
    if chat:
        handler.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    for piece in ("one ", "two"):
        time.sleep(0.05)
        text = {"delta": {"content": piece}} if chat else {"text": piece}
        handler.event({"choices": [{"index": 0, **text}]})
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    handler.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, **details}})
    handler.wfile.write(b"data: [DONE]\n\n")


def test_times_and_tokens_are_those_of_the_answer() -> None:
    with serving(two_pieces) as fake:
        (answer,) = ask(fake, [Request(id="a", prompt="x", max_tokens=2)]).answers
    assert answer.error is None
    assert (answer.prompt_tokens, answer.cached_tokens, answer.generated_tokens) == (9, 4, 2)
    assert answer.text == "one two"
    assert 0.05 <= answer.first_s < answer.end_s
    assert answer.end_s >= 0.1
    assert len(answer.gaps_s) == 1
    assert answer.per_token_s == pytest.approx(answer.end_s - answer.first_s)


def test_the_role_is_no_token() -> None:
    request = Request(id="a", messages=[{"role": "user", "content": "x"}], max_tokens=2)
    with serving(two_pieces) as fake:
        (answer,) = ask(fake, [request]).answers
        assert fake.asked[0][1] == "/v1/chat/completions"
    assert answer.first_s >= 0.05


CHAT = [
    Request(id="a", messages=[{"role": "user", "content": "1"}], max_tokens=2, answer="recorded"),
    Request(
        id="b", after="a", arrival_s=0.2, messages=[{"role": "user", "content": "2"}], max_tokens=2
    ),
]


@pytest.mark.parametrize(("recorded", "said"), [(False, "one two"), (True, "recorded")])
def test_a_chat_goes_on_from_its_answer_after_a_pause(recorded: bool, said: str) -> None:
    with serving(two_pieces) as fake:
        ask(fake, CHAT, Sending(recorded_answers=recorded))
        (first, _, _), (second, _, body) = fake.asked
    assert second - first >= 0.3  # the answer and the pause
    assert body["messages"] == [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "2"},
    ]


def test_pauses_can_be_left_out() -> None:
    with serving(two_pieces) as fake:
        traffic = ask(fake, CHAT, Sending(pauses=False))
    assert traffic.seconds < 0.3 + 1.0
    assert all(answer.error is None for answer in traffic.answers)


def test_requests_come_at_their_own_times_or_at_a_rate() -> None:
    requests = [
        Request(id=str(number), arrival_s=0.1 * number, prompt="x", max_tokens=2)
        for number in range(4)
    ]
    with serving(two_pieces) as fake:
        ask(fake, requests)
        own = [at for at, _, _ in fake.asked]
        ask(fake, requests, Sending(rate=float("inf")))
        at_once = [at for at, _, _ in fake.asked[4:]]
    assert own[-1] - own[0] >= 0.25
    assert at_once[-1] - at_once[0] < own[-1] - own[0]


def test_no_more_than_so_many_are_in_flight() -> None:
    together, most = [0], [0]
    lock = threading.Lock()

    def counting(handler: _Handler, body: dict[str, Any]) -> None:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        two_pieces(handler, body)
        with lock:
            together[0] -= 1

    requests = [Request(id=str(number), prompt="x", max_tokens=2) for number in range(6)]
    with serving(counting) as fake:
        ask(fake, requests, Sending(rate=float("inf"), concurrency=2))
    assert most[0] <= 3  # a server may see the next one before it has left the one before


def _refuse(handler: _Handler, body: dict[str, Any]) -> None:
    handler.write(b'{"error": {"message": "too many"}}', status=429)


def _fail_in_stream(handler: _Handler, body: dict[str, Any]) -> None:
    handler.write(b"")
    handler.event({"choices": [{"index": 0, "text": "x"}]})
    handler.event({"error": {"message": "the engine died"}})


def _drop(handler: _Handler, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.event({"choices": [{"index": 0, "text": "x"}]})
    handler.connection.close()


def _write_no_json(handler: _Handler, body: dict[str, Any]) -> None:
    handler.write(b"data: {what\n\n")


def _write_another_shape(handler: _Handler, body: dict[str, Any]) -> None:
    handler.write(b'data: {"choices": ["text"]}\n\n')


def _say_nothing(handler: _Handler, body: dict[str, Any]) -> None:
    handler.write(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (_refuse, "status 429: .*too many"),
        (_fail_in_stream, "the engine died"),
        (_drop, "RemoteProtocolError|ReadError"),
        (_write_no_json, "JSONDecodeError"),
        (_write_another_shape, "AttributeError"),
        (_say_nothing, "without text or without usage"),
    ],
)
def test_what_goes_wrong_stands_in_the_answer(reply: Reply, message: str) -> None:
    with serving(reply) as fake:
        first, second = ask(fake, CHAT).answers
    assert first.error is not None
    assert re.search(message, first.error)
    assert second.error == "not sent: a before it failed"


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(OckhamError, match="Is the server up"):
        asyncio.run(send(Server("http://127.0.0.1:9"), CHAT, Sending()))


def test_a_single_token_has_no_time_per_token() -> None:
    answer = Answer("a", first_s=1.0, end_s=1.0, generated_tokens=1)
    assert answer.per_token_s != answer.per_token_s
