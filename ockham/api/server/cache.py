"""`/v1/cache`: what the prefix cache holds, and prefixes that stay."""

from __future__ import annotations

import uuid

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.chat import render
from ockham.api.server.errors import HttpError
from ockham.api.server.job import Job
from ockham.api.server.protocol import CacheRequest, PinRequest, UnpinRequest
from ockham.api.server.serving import Serving, read, request_id, serving
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import CacheQuery, CacheReport, Pin


async def show_cache(http: Request) -> Response:
    """The nodes of the prefix tree. The text of a tenant's own is shown to who sends its salt, of
    requests without one if the server was started with --cache-text."""
    server = serving(http)
    request = await read(http, CacheRequest)
    request.check()
    report = await server.llm.client.ask(
        CacheQuery(
            ask_id=uuid.uuid4().hex,
            most_nodes=1000 if request.most_nodes is None else request.most_nodes,
            salt=request.cache_salt,
            unsalted_text=server.settings.cache_text,
        )
    )
    return _answer(report)


async def pin_prefix(http: Request) -> Response:
    """Compute a prefix, if it is not held, and keep it until it is unpinned."""
    server = serving(http)
    request = await read(http, PinRequest)
    request.check()
    tokens = await _tokens(server, request)
    # The last token of a prompt is computed too, and one is generated and thrown away.
    job = Job(
        server.llm,
        server.gate,
        request_id(http),
        [tokens],
        SamplingParams(max_tokens=1, temperature=0.0),
        server.settings.request_timeout_s,
        request.cache_salt or "",
    )
    await job.finals()
    name = request.name or f"pin-{uuid.uuid4().hex[:8]}"
    pin = Pin(name, tokens, request.cache_salt or "")
    report = await server.llm.client.ask(CacheQuery(ask_id=uuid.uuid4().hex, pin=pin))
    return _answer(report, name=name)


async def unpin_prefix(http: Request) -> Response:
    """Let a prefix go again; 404 for a name that no pin has."""
    request = await read(http, UnpinRequest)
    query = CacheQuery(ask_id=uuid.uuid4().hex, unpin=request.name)
    report = await serving(http).llm.client.ask(query)
    if report.error is not None:
        raise HttpError(404, report.error, param="name", code="not_found")
    return _answer(report)


async def _tokens(server: Serving, request: PinRequest) -> list[int]:
    special = request.add_special_tokens
    if request.messages is not None:
        text = await render(server, request.template())
        return await server.llm.encode(text, add_special_tokens=bool(special))
    assert request.prompt is not None, "a checked request has one of the two"
    _, tokens = await server.llm.encode_prompt(
        request.prompt, add_special_tokens=special is not False
    )
    return tokens


def _answer(report: CacheReport, **more: str) -> Response:
    """`more`, and what the report says of the cache; the rest is between the two processes."""
    if report.error is not None:
        raise InvalidRequest(report.error)
    said = msgspec.structs.asdict(report)
    shown = {name: value for name, value in said.items() if name not in ("ask_id", "error")}
    return Response(msgspec.json.encode(more | shown), media_type="application/json")
