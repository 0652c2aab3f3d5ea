"""A hub on this machine: the few addresses of the Hugging Face hub that its client asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class FakeHub:
    """`repositories` are name -> path -> content; they may be changed while it runs. `asked` are
    the paths of files that were downloaded."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    gated: frozenset[str] = frozenset()

    def commit(self, name: str) -> str:
        """The commit of a repository: it changes with what is in it."""
        digest = hashlib.sha1(repr(sorted(self.repositories[name].items())).encode())
        return digest.hexdigest()


@contextmanager
def fake_hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[FakeHub]:
    """Runs until the end of the block; `HF_ENDPOINT` is to be its `url`."""
    hub = FakeHub({name: dict(files) for name, files in repositories.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            api = path.startswith("api/models/")
            path = path.removeprefix("api/models/")
            name = next((each for each in hub.repositories if path.startswith(f"{each}/")), None)
            if name is None and path in hub.repositories:
                name = path
            if name is None:
                self._send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)
                return
            if name in hub.gated:
                self._send(403, {"X-Error-Code": "GatedRepo"}, b"{}", with_body)
                return
            verb, _, rest = path[len(name) + 1 :].partition("/")
            files, commit = hub.repositories[name], hub.commit(name)
            if api and verb in ("", "revision"):
                if verb == "revision" and rest not in ("main", commit):
                    self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", with_body)
                    return
                siblings = [{"rfilename": each} for each in files]
                self._json({"id": name, "sha": commit, "siblings": siblings})
            elif api and verb == "tree":
                self._json(
                    [
                        {"type": "file", "path": each, "size": len(data), "oid": _digest(data)}
                        for each, data in files.items()
                    ]
                )
            elif verb == "resolve":
                file = rest.partition("/")[2]
                if file not in files:
                    self._send(404, {"X-Error-Code": "EntryNotFound"}, b"", with_body)
                    return
                if with_body:
                    hub.asked.append(f"{name}/{file}")
                headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(files[file])}"'}
                self._send(200, headers, files[file], with_body)
            else:
                self._send(404, {}, b"{}", with_body)

        def _json(self, value: object) -> None:
            headers = {"Content-Type": "application/json"}
            self._send(200, headers, json.dumps(value).encode(), True)

        def _send(
            self, status: int, headers: Mapping[str, str], body: bytes, with_body: bool
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
