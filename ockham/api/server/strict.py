"""HTTP/1.1 as h11 reads it, without what two servers in a row may understand differently.

A proxy and the server behind it must agree where a request ends, or a client can smuggle a second
one past the proxy. h11 takes some forms that RFC 9112 only tolerates; here they are refused.
"""

from __future__ import annotations

import re

import h11

MAX_HEADERS = 128
"""Lines of one request's head."""
MAX_HEAD_BYTES = 16 << 10
FREE_CHUNKS = 1024
"""So many chunks of a body may be of any size; every one costs as much as a large one."""
MEAN_CHUNK_BYTES = 128
"""What the chunks beyond must hold on average."""

_BLANK_LINE = re.compile(rb"\n\r?\n")
_CHUNKED_END = b"\r\n\r\n"


class StrictConnection(h11.Connection):
    """The server's side of a connection. `fault` says why the peer was not understood."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.fault: h11.RemoteProtocolError | None = None
        self.chunked = False
        """Whether the body that is being read comes in chunks."""
        self._chunks = 0
        self._body_bytes = 0
        self._tail = b""

    @property
    def tiny_chunks(self) -> bool:
        """Whether the chunks of this body have been small so far."""
        return self._body_bytes <= MEAN_CHUNK_BYTES * self._chunks

    def receive_data(self, data: bytes) -> None:
        # The last bytes before the latest ones, for what straddles two packets.
        self._tail = (self._tail + data)[-len(data) - len(_CHUNKED_END) :]
        super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Raises `h11.RemoteProtocolError` for what is no HTTP, or could be read in two ways."""
        try:
            if self.their_state is h11.IDLE:
                self._check_head()
            event = super().next_event()
            if isinstance(event, h11.Request) and event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("its version is neither 1.1 nor 1.0")
            if self.chunked and isinstance(event, h11.Data):
                self._check_chunk(event)
            if self.chunked and isinstance(event, h11.EndOfMessage):
                self._check_end(event)
        except h11.RemoteProtocolError as error:
            self.fault = error
            raise
        return event

    def _check_head(self) -> None:
        received, _ = self.trailing_data
        end = _BLANK_LINE.search(received)
        if end is None:
            return
        if end.end() > MAX_HEAD_BYTES:  # h11 counts only what has not ended yet
            raise h11.RemoteProtocolError(f"its head has more than {MAX_HEAD_BYTES} bytes", 431)
        head = received[: end.end()]
        without = head.replace(b"\r\n", b"")
        if b"\n" in without or b"\r" in without:
            raise h11.RemoteProtocolError("a line of the head does not end in CR LF")
        if b"\r\n " in head or b"\r\n\t" in head:
            raise h11.RemoteProtocolError("a header goes on on a second line")
        request, *lines = head[: -len(b"\r\n\r\n")].split(b"\r\n")
        if len(lines) > MAX_HEADERS:
            raise h11.RemoteProtocolError(
                f"it has {len(lines)} headers, at most {MAX_HEADERS} are taken", 431
            )
        headers = [line.partition(b":") for line in lines]
        lengths = [value.strip() for name, _, value in headers if _is(name, b"content-length")]
        codings = [value.strip() for name, _, value in headers if _is(name, b"transfer-encoding")]
        if lengths and codings:
            raise h11.RemoteProtocolError("it has both Content-Length and Transfer-Encoding")
        if len(lengths) > 1:
            raise h11.RemoteProtocolError("it has several Content-Length headers")
        if any(not length.isdigit() for length in lengths):
            raise h11.RemoteProtocolError("its Content-Length is no number")
        if any(coding.lower() != b"chunked" for coding in codings) or len(codings) > 1:
            raise h11.RemoteProtocolError("the only Transfer-Encoding taken is one 'chunked'")
        if codings and request.endswith(b"HTTP/1.0"):
            raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")
        self.chunked = bool(codings)
        self._chunks = self._body_bytes = 0

    def _check_chunk(self, event: h11.Data) -> None:
        self._chunks += event.chunk_start
        self._body_bytes += len(event.data)
        if self._chunks > FREE_CHUNKS + self._body_bytes // MEAN_CHUNK_BYTES:
            raise h11.RemoteProtocolError(
                f"its body comes in chunks of less than {MEAN_CHUNK_BYTES} bytes"
            )

    def _check_end(self, event: h11.EndOfMessage) -> None:
        """Nothing stands between the last chunk and the blank line after it."""
        rest, _ = self.trailing_data
        if event.headers or not self._tail[: len(self._tail) - len(rest)].endswith(_CHUNKED_END):
            raise h11.RemoteProtocolError("its last chunk is not followed by one blank line")


def _is(name: bytes, wanted: bytes) -> bool:
    return name.strip().lower() == wanted
