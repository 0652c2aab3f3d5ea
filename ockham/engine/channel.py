"""The two ends of the socket between the API's process and the engine's.

A frame is four bytes of length, lowest first, and a msgpack array of messages. msgspec checks every
message against its type; nothing is ever unpickled.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from ockham.engine.mailbox import Mailbox
from ockham.engine.messages import FromEngine

HEADER = struct.Struct("<I")
_RECEIVE_BYTES = 1 << 18

T = TypeVar("T")
F = TypeVar("F")
_encoder = msgspec.msgpack.Encoder()


def frame(messages: Sequence[Any]) -> bytes:
    """Messages as one frame."""
    body = _encoder.encode(messages)
    return HEADER.pack(len(body)) + body


class Channel(Generic[T]):
    """The engine's end. Only `wait`, `receive_first` and `drain` ever block.

    What the other side does not read at once waits in a `Mailbox`, so that a slow reader neither
    slows a step nor makes the engine's memory grow.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        """`incoming` is the type of the messages that are received."""
        self._sock = sock
        self._sock.setblocking(False)
        self._decoder: msgspec.msgpack.Decoder[list[T]] = msgspec.msgpack.Decoder(list[incoming])
        self._received = bytearray()
        self._decoded: deque[T] = deque()
        self._mailbox = Mailbox()
        self._unsent = memoryview(b"")

    def receive(self) -> Iterator[T]:
        """The messages that have arrived completely, one by one: what the caller does not take
        now waits for the next call. Raises `EOFError` when the peer is gone."""
        while True:
            while self._decoded:
                yield self._decoded.popleft()
            body = self._next_body()
            if body is not None:
                self._decoded += self._decoder.decode(body)
            elif not self._read():
                return

    def receive_first(self, kind: type[F]) -> F:
        """Wait for the first frame, which holds one message of another type than the rest."""
        while (body := self._next_body()) is None:
            self.wait()
            self._read()
        return msgspec.msgpack.decode(body, type=tuple[kind])[0]  # type: ignore[valid-type]

    def _read(self) -> bool:
        """Take what the socket holds; False when it held nothing. `EOFError` at the end."""
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self._received += data
        return True

    def _next_body(self) -> bytes | None:
        if len(self._received) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._received)[0]
        if len(self._received) < end:
            return None
        body = bytes(self._received[HEADER.size : end])
        del self._received[:end]
        return body

    def send(self, messages: Iterable[FromEngine]) -> None:
        """Send what the socket takes now; the rest waits for the next call, or for `wait`."""
        self._mailbox.put(messages)
        while self._unsent or self._mailbox:
            if not self._unsent:
                self._unsent = memoryview(frame(self._mailbox.take()))
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise EOFError from error

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep, using no CPU, until there is something to receive or room to send what waits."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.poll(None if timeout_s is None else timeout_s * 1000.0)

    def drain(self, timeout_s: float) -> None:
        """Send what still waits, or give up after `timeout_s`: last words before an exit."""
        self._sock.settimeout(timeout_s)
        try:
            while self._unsent or self._mailbox:
                self._sock.sendall(self._unsent)
                self._unsent = memoryview(frame(self._mailbox.take()) if self._mailbox else b"")
        except OSError:
            return
