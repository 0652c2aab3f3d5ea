"""Ollama's API: chats, prompts, embeddings, and what its clients ask about models."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.errors import HttpError
from ockham.api.server.house import choose, house
from ockham.api.server.managing import check_may_manage, stay
from ockham.api.server.ollama.answer import ChatAnswer, GenerateAnswer
from ockham.api.server.ollama.dialect import DIALECT
from ockham.api.server.ollama.embed import embed, embeddings
from ockham.api.server.ollama.models import (
    list_running,
    list_tags,
    not_here,
    pull,
    show,
    version,
)
from ockham.api.server.ollama.names import served_name
from ockham.api.server.ollama.options import NAMES
from ockham.api.server.ollama.request import ChatBody, GenerateBody, keep_alive_seconds
from ockham.api.server.ollama.wire import Chatted, Generated, Said, now
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatRequest
from ockham.api.server.serving import pass_over, read_chat
from ockham.api.server.turn import Turn, take_turn

__all__ = ["DIALECT", "ROUTES"]


@describes(
    takes=ChatBody,
    gives=Chatted,
    streams=Chatted,
    stream_type="application/x-ndjson",
    lenient=True,
    example={"model": "lab", "messages": [{"role": "user", "content": "Hello"}], "stream": False},
)
async def chat(http: Request) -> Response:
    """The next message of a chat."""
    begin_ns = time.monotonic_ns()
    body, request = await read_chat(http, ChatBody)
    if body.asks_nothing:
        return await _come_or_go(
            http, body, Chatted(model=body.model, created_at=now(), message=Said())
        )
    warnings = await _prepare(http, body, request)
    turn = await take_turn(http, request, NAMES)
    _check_thinking(turn, body)
    return await ChatAnswer(http, turn, body.model, begin_ns, warnings).respond(turn.job)


@describes(
    takes=GenerateBody,
    gives=Generated,
    streams=Generated,
    stream_type="application/x-ndjson",
    lenient=True,
    example={"model": "lab", "prompt": "Once upon a time", "stream": False},
)
async def generate(http: Request) -> Response:
    """The answer to one prompt, or the text that follows it."""
    begin_ns = time.monotonic_ns()
    body, request = await read_chat(http, GenerateBody)
    if body.asks_nothing:
        return await _come_or_go(http, body, Generated(model=body.model, created_at=now()))
    warnings = await _prepare(http, body, request)
    turn = await take_turn(
        http,
        request,
        NAMES,
        raw=None if body.is_chat else body.prompt,
        behind=body.suffix,
        before=body.context or (),
    )
    if body.is_chat:
        _check_thinking(turn, body)
    answer = GenerateAnswer(http, turn, body.model, begin_ns, warnings, tells_context=body.is_chat)
    return await answer.respond(turn.job)


ROUTES = (
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/embed", embed, methods=["POST"]),
    Route("/api/embeddings", embeddings, methods=["POST"]),
    Route("/api/tags", list_tags),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/ps", list_running),
    Route("/api/version", version),
    Route("/api/pull", pull, methods=["POST"]),
    *(
        Route(f"/api/{name}", not_here, methods=["POST"])
        for name in ("create", "copy", "push", "blobs/{digest}")
    ),
    Route("/api/delete", not_here, methods=["DELETE"]),
)


async def _prepare(http: Request, body: ChatBody | GenerateBody, request: ChatRequest) -> list[str]:
    """Name the model as the server does, load it, and tell of options that are not kept. Raises
    `HttpError` 404 for another model."""
    models = house(http).models
    request.model = served_name(models, body.model)
    server = await choose(http, request.model)
    stay(http, keep_alive_seconds(body.keep_alive))
    warnings = body.options.warnings(server.llm.ready.max_model_len)
    if warnings:
        pass_over(http, "options.num_ctx")
    return warnings


async def _come_or_go(
    http: Request, body: ChatBody | GenerateBody, answer: Chatted | Generated
) -> Response:
    """The answer to a request that only wants the model to be loaded, or with a `keep_alive` of 0
    to be let go. The model of a server that has one is always there."""
    models, seconds = house(http).models, keep_alive_seconds(body.keep_alive)
    name = served_name(models, body.model)
    shown = next(each for each in models.shown() if name in each.names or name in each.adapters)
    answer.done, answer.done_reason = True, "load"
    if seconds == 0 and shown.managed:
        check_may_manage(http)
        models.unload(name)
        answer.done_reason = "unload"
    else:
        await choose(http, name)
        stay(http, seconds)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _check_thinking(turn: Turn, body: ChatBody | GenerateBody) -> None:
    """Raise `HttpError` if thoughts are asked of a model that has none, in Ollama's words: clients
    that read them ask again without."""
    if body.think not in (None, False) and not turn.plan.style.thinks:
        raise HttpError(
            400, f'"{body.model}" does not support thinking; leave think out.', param="think"
        )
