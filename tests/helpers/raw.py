"""A client that sends whatever bytes a test wants, which no HTTP library would."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit


def connect(url: str, timeout_s: float = 20.0) -> socket.socket:
    """A connection to the server at `url`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port), timeout_s)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the peer closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            received += part
    return received


def exchange(url: str, sent: bytes, *, half_close: bool = False) -> bytes:
    """What a server answers to these bytes until it closes the connection."""
    with connect(url) as sock:
        sock.sendall(sent)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def status(answer: bytes) -> int:
    """The status of the first answer that is not provisional."""
    while answer.startswith(b"HTTP/1.1 1"):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split()[1])


def post(path: str, *lines: str, body: bytes = b"") -> bytes:
    """A request with these header lines beside those that every one has; none says a length."""
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextlib.contextmanager
def idle_connections(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections on which nothing is said."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(url)) for _ in range(count)]
