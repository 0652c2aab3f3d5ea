"""Answers that take long: streamed as server-sent events, and given up when the client goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ockham.api.server.errors import as_ockham_error
from ockham.api.server.reasons import note_refusal
from ockham.core.errors import OckhamError

log = logging.getLogger("ockham.server")

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"


def event(data: bytes, name: str = "") -> bytes:
    """One event, which may have a name. `data` is JSON, which holds no line breaks."""
    named = b"event: " + name.encode() + b"\n" if name else b""
    return named + b"data: " + data + b"\n\n"


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The request's body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None if the client went away first, which cancels it."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        return None
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.wait({worker, watcher})


class EventStream(Response):
    """Sends events as they come, and a sign of life where none comes for long.

    The status waits for the first event (or `keep_alive_s`), so that a request that is refused
    gets the status of its error. An error after that is what `failed` makes of it. When the client
    goes away the events' generator is closed, which frees its work.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[OckhamError], bytes],
        *,
        keep_alive_s: float,
        timeout_s: float,
        alive: Callable[[], bytes | None] = lambda: COMMENT,
        media_type: str = "text/event-stream",
    ) -> None:
        """`timeout_s` is for a client that does not read: the events have limits of their own.
        `alive` gives the sign of life; without one nothing is sent."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["Content-Length"]
        self._events = events
        self._failed = failed
        self._keep_alive_s = keep_alive_s
        self._timeout_s = timeout_s
        self._alive = alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await unless_disconnected(receive, self._send(scope, send))
        except TimeoutError:
            log.warning("A client did not read its stream in time; the connection is cut.")

    async def _send(self, scope: Scope, send: Send) -> None:
        started = False
        async with aclosing(self._events) as events:
            pending: asyncio.Future[bytes | None] = asyncio.ensure_future(anext(events, None))
            try:
                while True:
                    await asyncio.wait({pending}, timeout=self._keep_alive_s)
                    try:
                        chunk = pending.result() if pending.done() else self._alive() or b""
                    except Exception as error:
                        if not started:
                            raise
                        known = as_ockham_error(error)
                        note_refusal(scope, known)
                        chunk = self._failed(known)
                    if not started:
                        started = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": self.status_code,
                                "headers": self.raw_headers,
                            }
                        )
                    if chunk is None:
                        break
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    if pending.done():
                        pending = asyncio.ensure_future(anext(events, None))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                pending.cancel()
                await asyncio.wait({pending})
