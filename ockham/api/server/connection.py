"""One client's connection: uvicorn's HTTP/1.1, with bounds on what a stranger can make it keep.

Beyond uvicorn's own protocol: seconds for the head of a request, a place in the `Room`, the strict
reading of `StrictConnection`, errors as JSON, peers that close only their sending half, and an end
that lets a client read why its body was refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ockham.api.server.errors import HttpError, error_body
from ockham.api.server.room import Room, connections_log
from ockham.api.server.settings import ServerSettings
from ockham.api.server.strict import StrictConnection

READ_BYTES = 64 << 10
"""Taken from one connection in one turn of the event loop."""
READ_CHUNKED_BYTES = 8 << 10
"""The same while a body comes in chunks, each of which costs as much as a large one."""
READ_TINY_BYTES = 512
"""The same while these chunks are small."""
LINGER_S = 2.0
"""How long the rest of a refused body is thrown away, so that the client sees the answer: closing
at once would reset the connection."""
UNREAD_S = 5.0
"""A closed connection is cut when its peer has read nothing of the rest for so long."""
PROBE_S = 0.25
"""How soon a peer that has closed its sending half is asked whether it is still there."""
LONGEST_PROBE_S = 5.0

_read_buffer = bytearray(READ_BYTES)
"""Of all connections: what is read is copied out before anything else is read."""


class Connection(asyncio.BufferedProtocol, H11Protocol):
    """A connection, served by uvicorn once a request's head is there."""

    def __init__(self, room: Room, settings: ServerSettings, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.conn: StrictConnection = StrictConnection()
        self.logger = connections_log
        self._room = room
        self._settings = settings
        self._inner = self.app
        self.app = self._serve
        self._heading: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None
        self._peer_done = False
        self._received = False
        """Whether something of the next request has come."""

    # -- the transport's calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Ending(transport, self._owes))  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.count -= 1
        self._room.is_busy(self)
        for timer in (self._heading, self._probing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def get_buffer(self, sizehint: int) -> memoryview:
        most = READ_BYTES
        if self.conn.chunked:
            most = READ_TINY_BYTES if self.conn.tiny_chunks else READ_CHUNKED_BYTES
        return memoryview(_read_buffer)[:most]

    def buffer_updated(self, nbytes: int) -> None:
        if self.transport.is_closing():
            return  # the rest of what was refused
        self._received = True
        self.data_received(bytes(memoryview(_read_buffer)[:nbytes]))
        if self._serving:
            self._room.is_busy(self)
            self._stop_heading()
        elif not self.transport.is_closing():
            self._await_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A peer that sends nothing more may still read (`nc -N`). Whether it does, only writing
        can tell: an answer that has begun will find out, and one that has not is probed for."""
        cycle = self.cycle
        if not self._serving or cycle.more_body or cycle.response_started:
            return False
        self._peer_done = True
        self._probing = self.loop.call_later(PROBE_S, self._probe, PROBE_S)
        return True

    # -- uvicorn's calls -------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self._received = False
        super().on_response_complete()  # which may begin with the next request already
        if self._serving or self.transport.is_closing():
            return
        if self._peer_done:
            self.transport.close()
        else:
            self._room.is_idle(self)

    def send_400_response(self, msg: str) -> None:
        """What h11 did not understand."""
        fault = self.conn.fault
        status = 431 if fault is not None and fault.error_status_hint == 431 else 400
        reason = str(fault or msg).rstrip(".")
        if len(reason) > 200:  # h11 quotes what it was sent
            reason = f"{reason[:200]}..."
        self._refuse(HttpError(status, f"The request is not taken as HTTP/1.1: {reason}."))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room.serve(scope["path"].rstrip("/")) as allowed:
            if not allowed:
                scope["ockham.refusal"] = (
                    f"{self._room.busy} requests are being served, of at most {self._room.most} "
                    "(max_connections); try again later."
                )
            await _app(self._inner)(scope, receive, send)

    # -- ends ------------------------------------------------------------------------------------

    def evict(self) -> None:
        self.transport.abort()

    @property
    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _owes(self) -> bool:
        """Whether the peer is still to send something that nobody will read."""
        return self.conn.fault is not None or self.conn.their_state is h11.SEND_BODY

    def _await_head(self) -> None:
        self._room.is_idle(self)
        if self._heading is None:
            seconds = self._settings.header_timeout_s
            self._heading = self.loop.call_later(seconds, self._head_is_late)

    def _stop_heading(self) -> None:
        if self._heading is not None:
            self._heading.cancel()
            self._heading = None

    def _head_is_late(self) -> None:
        self._heading = None
        if self._serving or self.transport.is_closing():
            return
        if self._received and self.conn.their_state is h11.IDLE:
            seconds = self._settings.header_timeout_s
            self._refuse(
                HttpError(408, f"The request's headers did not arrive within {seconds:g} s.")
            )
        self.transport.close()

    def _refuse(self, error: HttpError) -> None:
        """Answer what never became a request, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_body(error)
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (
                h11.Response(
                    status_code=error.status,
                    headers=headers,
                    reason=HTTPStatus(error.status).phrase.encode(),
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self._serving:  # the body is at fault: who waits for it hears that nothing more comes
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _probe(self, after_s: float) -> None:
        """Say something that means nothing to a peer that may have gone: the system of one that
        has answers with a reset, and the next write fails.

        HTTP/1.0 has nothing of the kind to say: whoever closes has had its time.
        """
        if not self._serving or self.cycle.response_started:
            return
        if self.conn.their_http_version != b"1.1":
            self.transport.close()
            return
        progress = h11.InformationalResponse(status_code=102, headers=[], reason=b"Processing")
        self.transport.write(self.conn.send(progress) or b"")
        after_s = min(2.0 * after_s, LONGEST_PROBE_S)
        self._probing = self.loop.call_later(after_s, self._probe, after_s)


class _Ending:
    """A transport that ends in order: what was refused is thrown away for a while so that the
    answer arrives, and a peer that does not read the rest of its answer is cut."""

    def __init__(self, transport: asyncio.Transport, owes: Callable[[], bool]) -> None:
        self._transport = transport
        self._owes = owes
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        loop = asyncio.get_running_loop()
        unread_bytes = self._transport.get_write_buffer_size()
        if not self._owes():
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()
            loop.call_later(LINGER_S, self._transport.close)
        if unread_bytes:
            loop.call_later(UNREAD_S, self._cut, unread_bytes)

    def _cut(self, unread_bytes: int) -> None:
        """Cut a peer that has read nothing since there were so many bytes left."""
        left = self._transport.get_write_buffer_size()
        if left and left < unread_bytes:
            asyncio.get_running_loop().call_later(UNREAD_S, self._cut, left)
        else:
            self._transport.abort()


def _app(app: Any) -> ASGIApp:
    """uvicorn's type of an application as Starlette's."""
    checked: ASGIApp = app
    return checked
