"""Ollama's API: chats, prompts, embeddings, and what its clients ask about models."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.errors import HttpError
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
from ockham.api.server.ollama.request import ChatBody, GenerateBody
from ockham.api.server.ollama.wire import Chatted, Generated, Said, now
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatRequest
from ockham.api.server.serving import pass_over, read_chat, serving
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
    warnings = _prepare(http, body, request)
    if body.asks_nothing:
        return _loaded(Chatted(model=body.model, created_at=now(), message=Said()))
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
    warnings = _prepare(http, body, request)
    if body.asks_nothing:
        return _loaded(Generated(model=body.model, created_at=now()))
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


def _prepare(http: Request, body: ChatBody | GenerateBody, request: ChatRequest) -> list[str]:
    """Name the model as the server does, and tell of options that are not kept. Raises
    `HttpError` 404 for another model."""
    server = serving(http)
    request.model = served_name(server, body.model)
    warnings = body.options.warnings(server.llm.ready.max_model_len)
    if warnings:
        pass_over(http, "options.num_ctx")
    return warnings


def _check_thinking(turn: Turn, body: ChatBody | GenerateBody) -> None:
    """Raise `HttpError` if thoughts are asked of a model that has none, in Ollama's words: clients
    that read them ask again without."""
    if body.think not in (None, False) and not turn.plan.style.thinks:
        raise HttpError(
            400, f'"{body.model}" does not support thinking; leave think out.', param="think"
        )


def _loaded(answer: Chatted | Generated) -> Response:
    """The model is always there, also after a request to unload it."""
    answer.done, answer.done_reason = True, "load"
    return Response(msgspec.json.encode(answer), media_type="application/json")
