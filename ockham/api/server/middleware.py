"""Around every route: the request's id, the key, the access log, and errors."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ockham.api.server.body import Budget
from ockham.api.server.caller import NOBODY, Caller, key_name, set_caller
from ockham.api.server.dialect import Dialect, dialect_of, error_response, set_dialect
from ockham.api.server.errors import HttpError, as_ockham_error
from ockham.api.server.fields import passed_over_header
from ockham.api.server.house import Models, let_go
from ockham.api.server.reasons import REFUSED, note_refusal
from ockham.api.server.serving import METERED, PASSED_OVER, new_request_id
from ockham.api.server.settings import ServerSettings
from ockham.api.server.traces import Trace, Traces
from ockham.api.server.wire import UsageMeter
from ockham.core import logs

access = logging.getLogger("ockham.access")

OPEN_PATHS = frozenset({"/", "/health", "/ping", "/openapi.json", "/docs"})
"""The routes that need no key."""
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9._:@/+=-]")
_ID_CHARACTERS = 128


class Outermost:
    """Gives each request its id, answers whatever was raised below, counts and logs."""

    def __init__(
        self,
        app: ASGIApp,
        models: Models,
        budget: Budget,
        routes: Sequence[Route],
        dialects: Sequence[Dialect],
        settings: ServerSettings,
        traces: Traces | None = None,
    ) -> None:
        """`routes` are those whose paths metrics may name; any other is counted as "other"."""
        self._app = app
        self._models = models
        self._budget = budget
        self._routes = routes
        self._dialects = dialects
        self._log = settings.access_log or settings.log_requests
        self._log_course = settings.log_requests
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin_s = time.monotonic()
        headers = Headers(scope=scope)
        request_id = _safe_id(headers.get("x-request-id")) or new_request_id()
        scope["ockham.request_id"] = request_id
        logs.request_id.set(request_id)  # of this task, and of those that it begins
        scope["path"] = _plain_path(scope["path"])
        set_dialect(scope, self._dialects)
        trace = None if self._traces is None else self._traces.begin(scope, headers)
        status = 499  # unless a response begins, the client has gone
        owed = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

        async def receive_body() -> Message:
            nonlocal owed
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                owed = False
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                if (also := dialect_of(scope).id_header) is not None:
                    answer[also] = request_id
                if passed_over := scope.get(PASSED_OVER):
                    answer["X-Ockham-Ignored-Fields"] = passed_over_header(passed_over)
                if owed:  # a body that was refused is not read, so nothing can follow it
                    answer["Connection"] = "close"
            await send(message)

        try:
            with self._budget.lease() as lease:
                scope["ockham.lease"] = lease
                if "ockham.refusal" in scope:
                    raise HttpError(503, scope["ockham.refusal"], code="too_many_connections")
                await self._app(scope, receive_body, send_with_id)
        except Exception as error:
            known = as_ockham_error(error)
            note_refusal(scope, known)
            if status == 499:
                await error_response(known, scope)(scope, receive, send_with_id)
        finally:
            let_go(scope)
            route = self._route(scope)
            self._models.answered(scope, route, status)
            if trace is not None:
                model, drafters = self._models.name_of(scope), self._models.drafters(scope)
                trace.end(scope, route, status, scope.get(METERED), model, drafters)
            if self._log:
                self._say(scope, route, status, begin_s, trace)

    def _route(self, scope: Scope) -> str:
        """The route's path with its parameters' names, never what a caller made up."""
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return route.path.replace(":path}", "}")
        return "other"

    def _say(
        self, scope: Scope, route: str, status: int, begin_s: float, trace: Trace | None
    ) -> None:
        request_id = scope["ockham.request_id"]
        client = (scope.get("client") or ("-", 0))[0]
        path = scope["path"][:200].encode("unicode_escape").decode()
        took_ms = (time.monotonic() - begin_s) * 1000.0
        fields: dict[str, Any] = {
            "client": client,
            "method": scope["method"],
            "path": path,
            "route": route,
        }
        fields |= {"status": status, "duration_ms": round(took_ms, 3), "request_id": request_id}
        more = ""
        if (refused := scope.get(REFUSED)) is not None:
            more, fields["refused"] = f": {refused}", refused
        meter: UsageMeter | None = scope.get(METERED)
        if meter is not None:
            fields["model"] = self._models.name_of(scope)
        if meter is not None and self._log_course:
            figures = meter.course.figures(meter.prompt_tokens, self._models.drafters(scope))
            words = figures.in_words()
            more = f"{more} ({words})" if more else f": {words}"
            fields |= msgspec.structs.asdict(figures)
        if passed_over := scope.get(PASSED_OVER):
            ignored = passed_over_header(passed_over)
            more, fields["ignored_fields"] = f"{more} (ignored fields: {ignored})", ignored
        if trace is not None:
            fields["trace_id"] = trace.trace_id
        access.info(
            "%s %s %s %d %.0f ms %s%s",
            *(client, scope["method"], path, status, took_ms, request_id, more),
            extra={"fields": fields},
        )


def _safe_id(given: str | None) -> str:
    """The id that the caller sent, with what a log or a header could misread replaced."""
    return _NOT_IN_AN_ID.sub("_", given or "")[:_ID_CHARACTERS]


def _plain_path(path: str) -> str:
    """The path as routes have it: of a target in absolute form, and without a slash at the end.
    Answered in place: a redirect would name a scheme that only a proxy before us knows."""
    scheme, found, rest = path.partition("://")
    if found and scheme.lower() in ("http", "https"):
        path = "/" + rest.partition("/")[2]
    return path.rstrip("/") or "/"


class Keys:
    """Lets nobody in without one of the keys, except to the open paths, and says who it is.

    With an administrator's key alone anybody is let in, and the administrator known."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        owners = max(1, len(settings.tenant_keys) + bool(settings.tenant_keys))
        # Digests are of one length, so that comparing them tells nothing of a key's length.
        self._callers = [
            (_digest(key.encode()), Caller(key_name(key), owners=owners))
            if settings.tenant_keys
            else (_digest(key.encode()), NOBODY)
            for key in settings.api_keys
        ]
        if settings.admin_api_key is not None:
            admin = Caller(is_admin=True, owners=owners)
            self._callers.append((_digest(settings.admin_api_key.encode()), admin))
        self._open = not settings.api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = _digest(_key(Headers(scope=scope)).encode("latin-1", "replace"))
            # Every key is compared, whichever fits: the time taken tells nothing.
            fits = [who for digest, who in self._callers if hmac.compare_digest(given, digest)]
            caller = fits[0] if fits else None
            if caller is None and not self._open and scope["path"] not in OPEN_PATHS:
                error = HttpError(
                    401,
                    "The API key is missing or wrong; send 'Authorization: Bearer KEY' or "
                    "'x-api-key: KEY'.",
                )
                note_refusal(scope, error)
                await error_response(error, scope)(scope, receive, send)
                return
            set_caller(scope, caller or NOBODY)
        await self._app(scope, receive, send)


def _key(headers: Headers) -> str:
    """The key that a caller shows, in OpenAI's header or in Anthropic's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
