"""The application: routes, and what stands around them."""

from __future__ import annotations

import difflib

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ockham.api.async_llm import AsyncLLM
from ockham.api.server.adapters import load_adapter, unload_adapter
from ockham.api.server.batches import ROUTES as BATCH_ROUTES
from ockham.api.server.body import Budget
from ockham.api.server.cache import pin_prefix, show_cache, unpin_prefix
from ockham.api.server.chat import create_chat_completion
from ockham.api.server.completions import create_completion
from ockham.api.server.control import control_chat_completion, control_running
from ockham.api.server.decisions import decide, decide_systemone
from ockham.api.server.dialect import Dialect, error_response
from ockham.api.server.errors import HttpError
from ockham.api.server.gate import Gate
from ockham.api.server.guard import show_guard
from ockham.api.server.house import House
from ockham.api.server.llama_server import ROUTES as LLAMA_SERVER_ROUTES
from ockham.api.server.managing import ALIASES as MANAGING_ALIASES
from ockham.api.server.managing import ROUTES as MANAGING_ROUTES
from ockham.api.server.messages import DIALECT as MESSAGES
from ockham.api.server.messages import ROUTES as MESSAGES_ROUTES
from ockham.api.server.metrics import Metrics
from ockham.api.server.middleware import Keys, Outermost
from ockham.api.server.ollama import DIALECT as OLLAMA
from ockham.api.server.ollama import ROUTES as OLLAMA_ROUTES
from ockham.api.server.one_model import OneModel
from ockham.api.server.openapi import ROUTES as OPENAPI_ROUTES
from ockham.api.server.page import ROUTES as PAGE_ROUTES
from ockham.api.server.pooled import ALIASES as POOLED_ALIASES
from ockham.api.server.pooled import ROUTES as POOLED_ROUTES
from ockham.api.server.reasons import note_refusal
from ockham.api.server.responses import ALIASES as RESPONSES_ALIASES
from ockham.api.server.responses import ROUTES as RESPONSES_ROUTES
from ockham.api.server.settings import ServerSettings
from ockham.api.server.status import health, list_models, metrics, show_model, version
from ockham.api.server.tokenization import detokenize, tokenize, tokenizer_info
from ockham.core.errors import OckhamError, fault
from ockham.core.numbers import shown

ROUTES = (
    Route("/v1/completions", create_completion, methods=["POST"]),
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/decisions", decide, methods=["POST"]),
    Route("/v1/systemone", decide_systemone, methods=["POST"]),
    Route("/v1/chat/completions/control", control_running, methods=["POST"]),
    Route("/v1/chat/completions/{id}/control", control_chat_completion, methods=["POST"]),
    Route("/v1/cache", show_cache, methods=["POST"]),
    Route("/v1/cache/pin", pin_prefix, methods=["POST"]),
    Route("/v1/cache/unpin", unpin_prefix, methods=["POST"]),
    Route("/v1/guard", show_guard),
    Route("/v1/load_lora_adapter", load_adapter, methods=["POST"]),
    Route("/v1/unload_lora_adapter", unload_adapter, methods=["POST"]),
    Route("/v1/models", list_models),
    Route("/v1/models/{model:path}", show_model),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
    Route("/health", health),
    Route("/ping", health),
    Route("/version", version),
    Route("/metrics", metrics),
    *POOLED_ROUTES,
    *RESPONSES_ROUTES,
    *BATCH_ROUTES,
    *LLAMA_SERVER_ROUTES,
    *MANAGING_ROUTES,
    *MESSAGES_ROUTES,
    *OLLAMA_ROUTES,
    *OPENAPI_ROUTES,
    *PAGE_ROUTES,
)
ALIASES = (
    Route("/completions", create_completion, methods=["POST"]),
    Route("/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/models", list_models),
    Route("/models/{model:path}", show_model),
    *MANAGING_ALIASES,
    *POOLED_ALIASES,
    *RESPONSES_ALIASES,
)
"""For clients whose base URL was given without /v1."""

DIALECTS: tuple[Dialect, ...] = (MESSAGES, OLLAMA)
"""In which words errors are told, where these are not OpenAI's."""


def build_app(
    llm: AsyncLLM,
    settings: ServerSettings,
    gate: Gate,
    metrics: Metrics,
) -> ASGIApp:
    """The ASGI application that serves one model, which has been started."""
    models = OneModel(llm, settings, gate, metrics)
    return build_app_of(House(settings, models, llm, metrics.registry))


def build_app_of(house: House) -> ASGIApp:
    """The ASGI application of a server."""
    settings, middleware = house.settings, []
    if settings.api_keys or settings.admin_api_key:
        middleware.append(Middleware(Keys, settings=settings))
    if settings.cors_origins:
        # Outside of the keys: a browser's preflight cannot carry one.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Ockham-Ignored-Fields"],
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=[*ROUTES, *ALIASES],
        middleware=middleware,
        exception_handlers={
            OckhamError: _answer_error,
            HTTPException: _answer_http_error,
            Exception: _answer_fault,
        },
    )
    app.state.house = house
    app.state.routes, app.state.dialects = ROUTES, DIALECTS
    app.router.redirect_slashes = False  # `Outermost` takes them off
    budget = Budget(settings.max_bodies_bytes)
    routes = (*ROUTES, *ALIASES)
    return Outermost(app, house.models, budget, routes, DIALECTS, settings, house.traces)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OckhamError)
    return _refuse(request, error)


async def _answer_fault(request: Request, error: Exception) -> Response:
    """What was not raised on purpose. Starlette raises it again, and `Outermost` logs it."""
    return _refuse(request, fault())


def _refuse(request: Request, error: OckhamError) -> Response:
    note_refusal(request.scope, error)
    return error_response(error, request.scope)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """What the router raises: an unknown path, or a method that a path does not take."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.url.path} does not take {request.method}; it takes {allowed}."
        if "access-control-request-method" in request.headers:
            origin = shown(request.headers.get("origin", "*"))
            message += (
                f" If a page of {origin} may call this server, start it with --cors-origin and "
                "that origin."
            )
        response = _refuse(request, HttpError(405, message, code="method_not_allowed"))
        response.headers["Allow"] = allowed
        return response
    if error.status_code == 404:
        path = request.url.path
        known = dict.fromkeys(route.path for route in ROUTES if "{" not in route.path)
        near = difflib.get_close_matches(path, known, n=3, cutoff=0.6)
        remedy = f"Did you mean {' or '.join(near)}? " if near else ""
        message = f"There is no {path[:200]} here. {remedy}GET /docs lists what there is."
        return _refuse(request, HttpError(404, message, code="not_found"))
    return _refuse(request, HttpError(error.status_code, f"{error.detail}."))
