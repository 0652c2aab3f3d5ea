"""One line of a batch file, answered by the server's own routes without a socket."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.types import ASGIApp

from ockham.api.batch_file import BatchError, BatchResponse, BatchResult, parse
from ockham.api.server.caller import NOBODY, Caller, set_caller
from ockham.api.server.errors import error_body
from ockham.core.errors import EngineDead, InvalidRequest, OckhamError
from ockham.core.numbers import shown

URLS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/decisions",
    "/v1/systemone",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/classify",
)
MOST_TRIES = 3
"""How often a request is given to an engine that dies over it."""


async def answer(
    app: ASGIApp,
    recovered: Callable[[], Awaitable[None]],
    number: int,
    line: bytes,
    *,
    caller: Caller = NOBODY,
    urls: tuple[str, ...] = URLS,
) -> BatchResult:
    """The result of a line, for its caller; an error is a result too. `recovered` waits until a
    request whose engine died may be sent again; `urls` are the routes that the line may name."""
    name = f"batch_req_{uuid.uuid4().hex}"
    try:
        request = parse(line)
    except ValueError as error:
        reason = f"line {number} is no request: {error}"
        return BatchResult(name, None, None, BatchError("invalid_line", reason, number))
    try:
        _check(request.method, request.url, request.body, urls)
    except InvalidRequest as error:
        status, body = error.status, error_body(error)
    else:
        for _ in range(MOST_TRIES):
            status, body = await call(app, request.url, bytes(request.body), name, caller)
            if status != EngineDead.status:
                break
            await recovered()
    response = BatchResponse(status, name, msgspec.Raw(body))
    if status == 200:
        return BatchResult(name, request.custom_id, response, None)
    said = msgspec.json.decode(body)["error"]
    code = said["code"] or said["type"]
    return BatchResult(name, request.custom_id, response, BatchError(code, said["message"]))


def _check(method: str, url: str, body: msgspec.Raw, urls: tuple[str, ...]) -> None:
    """Raise InvalidRequest for what only a server with a socket could do."""
    if method != "POST":
        raise InvalidRequest(f"method must be POST, got {shown(method)}.", "method")
    if url not in urls:
        which = f"one of {', '.join(urls)}" if len(urls) > 1 else urls[0]
        raise InvalidRequest(f"url must be {which}, got {shown(url)}.", "url")
    try:
        content: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"body cannot be read: {error}", "body") from error
    if isinstance(content, dict) and content.get("stream"):
        raise InvalidRequest("a batch has no streams; leave out stream.", "stream")


async def call(
    app: ASGIApp, path: str, body: bytes, request_id: str, caller: Caller = NOBODY
) -> tuple[int, bytes]:
    """Post JSON to a route of the application; the status and the body of the answer."""
    status, parts, asked = 500, [], False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()  # this caller never goes away
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    headers = {"content-type": "application/json", "x-request-id": request_id}
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("batch", 0),
        "server": ("batch", 0),
    }
    set_caller(scope, caller)
    await app(scope, receive, send)
    if not parts:
        raise OckhamError(f"{path} gave no answer.")
    return status, b"".join(parts)
