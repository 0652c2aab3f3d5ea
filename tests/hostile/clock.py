"""The clock of the hostile battery: `python clock.py URL BODY`, a process of its own.

One thread reads a stream (BODY, sent again whenever it ends) and notes the longest gap between two
of its events; another asks for /health on a new connection each time and notes the longest answer.
Each line on standard input is answered by one line of JSON: what was seen since the line before.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

PAUSE_S = 0.02
TIMEOUT_S = 60.0


class Seen:
    """What was seen since it was last asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self.gap_s = self.health_s = self.machine_s = 0.0
        self.events = self.answers = 0
        self.faults: list[str] = []

    def gap(self, seconds: float) -> None:
        with self._lock:
            self.gap_s, self.events = max(self.gap_s, seconds), self.events + 1

    def health(self, seconds: float) -> None:
        with self._lock:
            self.health_s, self.answers = max(self.health_s, seconds), self.answers + 1

    def machine(self, seconds: float) -> None:
        with self._lock:
            self.machine_s = max(self.machine_s, seconds)

    def fault(self, text: str) -> None:
        with self._lock:
            self.faults.append(text)

    def take(self) -> str:
        with self._lock:
            kept = {name: value for name, value in vars(self).items() if name != "_lock"}
            line = json.dumps(kept)
            self._clear()
        return line


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), TIMEOUT_S)


def watch_stream(url: str, body: bytes, seen: Seen) -> None:
    """Read streams, one after another."""
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    while True:
        try:
            with connect(url) as sock:
                sock.sendall(head + body)
                last_s, begun, end = 0.0, False, b""
                while part := sock.recv(65536):
                    now_s = time.monotonic()
                    if begun:
                        seen.gap(now_s - last_s)
                    elif not part.startswith(b"HTTP/1.1 200"):
                        seen.fault(f"the stream: {part[:300]!r}")
                    last_s, begun, end = now_s, True, (end + part)[-200:]
                if b"[DONE]" not in end:
                    seen.fault(f"the stream ended with {end!r}")
                    time.sleep(1.0)
        except OSError as error:
            seen.fault(f"the stream: {error}")
            time.sleep(1.0)


def watch_health(url: str, seen: Seen) -> None:
    while True:
        begin_s = time.monotonic()
        try:
            with connect(url) as sock:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b""
                while part := sock.recv(65536):
                    answer += part
            if not answer.startswith(b"HTTP/1.1 200"):
                seen.fault(f"/health: {answer[:300]!r}")
        except OSError as error:
            seen.fault(f"/health: {error}")
        seen.health(time.monotonic() - begin_s)
        time.sleep(PAUSE_S)


def watch_machine(seen: Seen) -> None:
    """How much later than asked a thread wakes that has nothing to do with the server."""
    while True:
        begin_s = time.monotonic()
        time.sleep(PAUSE_S)
        seen.machine(time.monotonic() - begin_s - PAUSE_S)


def main() -> None:
    url, body = sys.argv[1], sys.argv[2].encode()
    seen = Seen()
    threading.Thread(target=watch_stream, args=(url, body, seen), daemon=True).start()
    threading.Thread(target=watch_health, args=(url, seen), daemon=True).start()
    threading.Thread(target=watch_machine, args=(seen,), daemon=True).start()
    for _ in sys.stdin:
        print(seen.take(), flush=True)


if __name__ == "__main__":
    main()
