"""Event streams at the level of ASGI: what is sent, when, and when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from ockham.api.server.errors import error_body
from ockham.api.server.sse import COMMENT, DONE, EventStream, event
from ockham.core.errors import EngineDead, OckhamError
from tests.helpers.clocks import run_moved

SCOPE = {"type": "http", "method": "POST", "path": "/"}


class Closed:
    """Set once the generator of events has been closed."""

    value = False


async def events(closed: Closed, pause_s: float = 0.0, error: Exception | None = None):
    try:
        yield event(b"1")
        await asyncio.sleep(pause_s)
        if error is not None:
            raise error
        yield event(b"2")
        yield DONE
    finally:
        closed.value = True


def failed(error: OckhamError) -> bytes:
    return error_body(error) + DONE


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


def respond(
    source: AsyncGenerator[bytes, None],
    *,
    receive: Callable[[], Awaitable[Any]] = never,
    keep_alive_s: float = 10.0,
    timeout_s: float = 10.0,
    reads: bool = True,
) -> list[dict[str, Any]]:
    """What the response sends, on a clock that moves by itself."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if not reads:
            await asyncio.Event().wait()

    response = EventStream(source, failed, keep_alive_s=keep_alive_s, timeout_s=timeout_s)
    run_moved(response(SCOPE, receive, send))
    return sent


def bodies(sent: list[dict[str, Any]]) -> list[bytes]:
    return [message["body"] for message in sent if message["type"] == "http.response.body"]


def test_events_are_sent_in_order_and_the_body_ends():
    sent = respond(events(Closed()))
    assert sent[0]["status"] == 200
    assert bodies(sent) == [event(b"1"), event(b"2"), DONE, b""]
    assert sent[-1]["more_body"] is False


def test_silence_is_filled_with_comments():
    sent = bodies(respond(events(Closed(), pause_s=35.0), keep_alive_s=10.0, timeout_s=60.0))
    assert sent == [event(b"1"), *[COMMENT] * 3, event(b"2"), DONE, b""]


def test_an_error_after_the_first_event_is_an_event():
    sent = bodies(respond(events(Closed(), error=EngineDead("It is gone."))))
    assert b"It is gone." in sent[1]
    assert sent[1].endswith(DONE)


def test_a_fault_after_the_first_event_does_not_show_its_inside():
    sent = bodies(respond(events(Closed(), error=ZeroDivisionError("secret"))))
    assert b"secret" not in b"".join(sent)
    assert b"fault" in sent[1]


def test_an_error_before_the_first_event_is_raised_before_anything_is_sent():
    async def refused() -> AsyncGenerator[bytes, None]:
        raise OckhamError("No.")
        yield b""

    with pytest.raises(OckhamError, match=r"No\."):
        respond(refused())


def test_a_client_that_goes_closes_the_events():
    async def goes() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    closed = Closed()
    respond(events(closed, pause_s=60.0), receive=goes)
    assert closed.value


def test_a_client_that_does_not_read_is_given_up():
    closed = Closed()
    respond(events(closed), reads=False, timeout_s=0.1)
    assert closed.value
