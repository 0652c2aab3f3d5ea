"""Runs a file of requests through the server's own routes, without a socket.

So a line is checked, answered and refused exactly as the same body sent to `ockham serve`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from starlette.types import ASGIApp

from ockham.api.async_llm import AsyncLLM
from ockham.api.batch_file import (
    BatchError,
    BatchInput,
    BatchOutput,
    BatchResponse,
    BatchResult,
    parse,
)
from ockham.api.server.adapters import check_modules
from ockham.api.server.app import build_app
from ockham.api.server.errors import error_body
from ockham.api.server.gate import Gate
from ockham.api.server.metrics import Metrics
from ockham.api.server.settings import ServerSettings
from ockham.core.config import EngineConfig
from ockham.core.errors import EngineDead, InvalidRequest, OckhamError
from ockham.core.ledger import Ledger
from ockham.core.numbers import shown
from ockham.model.hub import served_names

URLS = ("/v1/chat/completions", "/v1/completions")
AHEAD = 4
"""Requests under way for each sequence that may run, so that those that wait can be ordered."""
MOST_TRIES = 3
"""How often a request is given to an engine that dies over it."""
LONGEST_S = 24 * 3600.0


class Progress(msgspec.Struct):
    """How far a run is. `failed` of all that have a result, earlier ones too, have an error."""

    requests: int
    before: int
    """Finished by an earlier run."""
    finished: int = 0
    failed: int = 0
    ledger: Ledger = msgspec.field(default_factory=Ledger)


class _Usage(msgspec.Struct):
    ockham: Ledger | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


async def run_batch(
    config: EngineConfig,
    given: BatchInput,
    output: BatchOutput,
    names: tuple[str, ...] = (),
    tell: Callable[[Progress], None] = lambda progress: None,
    adapters: Mapping[str, str] | None = None,
) -> Progress:
    """Run every request of `given` that `output` has no result for; `tell` is called after each.

    `names` are those that requests may call the model by, `adapters` the directories of the
    adapters that they may name instead. Raises ModelError if the model cannot be
    loaded, OckhamError if the output cannot be written.
    """
    done = output.done
    progress = Progress(requests=len(given), before=len(done), failed=done.failed)
    seats = AHEAD * config.max_num_seqs
    settings = ServerSettings(
        served_model_names=names,
        adapters=dict(adapters or {}),
        max_body_bytes=1 << 30,
        max_queue=1 << 30,
        request_timeout_s=LONGEST_S,
        access_log=False,
    )
    async with AsyncLLM.from_config(config) as llm:
        await check_modules(llm, settings.adapters, names or served_names(config.model))
        gate = Gate(config.max_num_seqs, settings.max_queue)
        app = build_app(llm, settings, gate, Metrics((names or served_names(config.model))[0]))
        lines = given.lines(done)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(seats, len(given))):
                    group.create_task(_work(app, llm, lines, output, progress, tell))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return progress


async def _work(
    app: ASGIApp,
    llm: AsyncLLM,
    lines: Iterator[tuple[int, bytes]],
    output: BatchOutput,
    progress: Progress,
    tell: Callable[[Progress], None],
) -> None:
    """One request after another, until there are no more."""
    for number, line in lines:
        result = await _answer(app, llm, number, line)
        output.write(result)
        progress.finished += 1
        progress.failed += result.error is not None
        if result.response is not None and result.error is None:
            usage = msgspec.json.decode(result.response.body, type=_Body).usage
            if usage is not None and usage.ockham is not None:
                progress.ledger.add(usage.ockham)
        tell(progress)


async def _answer(app: ASGIApp, llm: AsyncLLM, number: int, line: bytes) -> BatchResult:
    name = f"batch_req_{uuid.uuid4().hex}"
    try:
        request = parse(line)
    except ValueError as error:
        reason = f"line {number} is no request: {error}"
        return BatchResult(name, None, None, BatchError("invalid_line", reason, number))
    try:
        _check(request.method, request.url, request.body)
    except InvalidRequest as error:
        status, body = error.status, error_body(error)
    else:
        for _ in range(MOST_TRIES):
            status, body = await call(app, request.url, bytes(request.body), name)
            if status != EngineDead.status:
                break
            while llm.client.trouble() is not None:
                await asyncio.sleep(0.1)
    response = BatchResponse(status, name, msgspec.Raw(body))
    if status == 200:
        return BatchResult(name, request.custom_id, response, None)
    said = msgspec.json.decode(body)["error"]
    code = said["code"] or said["type"]
    return BatchResult(name, request.custom_id, response, BatchError(code, said["message"]))


def _check(method: str, url: str, body: msgspec.Raw) -> None:
    """Raise InvalidRequest for what only a server with a socket could do."""
    if method != "POST":
        raise InvalidRequest(f"method must be POST, got {shown(method)}.", "method")
    if url not in URLS:
        raise InvalidRequest(f"url must be one of {', '.join(URLS)}, got {shown(url)}.", "url")
    try:
        content: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"body cannot be read: {error}", "body") from error
    if isinstance(content, dict) and content.get("stream"):
        raise InvalidRequest("a batch has no streams; leave out stream.", "stream")


async def call(app: ASGIApp, path: str, body: bytes, request_id: str) -> tuple[int, bytes]:
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
    scope = {
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
    await app(scope, receive, send)
    if not parts:
        raise OckhamError(f"{path} gave no answer.")
    return status, b"".join(parts)
