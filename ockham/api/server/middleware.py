"""Around every route: the request's id, the key, the access log, and errors in OpenAI's shape."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ockham.api.server.errors import HttpError, as_ockham_error, error_response
from ockham.api.server.fields import passed_over_header
from ockham.api.server.metrics import Metrics
from ockham.api.server.reasons import REFUSED, note_refusal, reason_for_log
from ockham.api.server.serving import PASSED_OVER, new_request_id
from ockham.core.errors import InvalidRequest

access = logging.getLogger("ockham.access")

OPEN_PATHS = frozenset({"/health"})
"""The routes that need no key."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


class Outermost:
    """Gives each request its id, answers whatever was raised below, counts and logs."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[Route], log: bool) -> None:
        """`routes` are those whose paths metrics may name; any other is counted as "other"."""
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin_s = time.monotonic()
        given = Headers(scope=scope).get("x-request-id")
        valid = given is not None and _REQUEST_ID.fullmatch(given)
        request_id = given if given is not None and valid else new_request_id()
        scope["ockham.request_id"] = request_id
        status = 499  # unless a response begins, the client has gone

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if passed_over := scope.get(PASSED_OVER):
                    headers["X-Ockham-Ignored-Fields"] = passed_over_header(passed_over)
            await send(message)

        try:
            if given is not None and not valid:
                raise InvalidRequest(
                    "X-Request-Id must be 1 to 128 letters, digits or characters of ._:@/+=-; "
                    "change it, or leave it out.",
                    "X-Request-Id",
                )
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            known = as_ockham_error(error)
            note_refusal(scope, known)
            if status == 499:
                await error_response(known)(scope, receive, send_with_id)
        finally:
            self._metrics.answered(self._route(scope), status)
            if self._log:
                self._say(scope, status, begin_s, request_id)

    def _route(self, scope: Scope) -> str:
        """The route's path with its parameters' names, never what a caller made up."""
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return route.path.replace(":path}", "}")
        return "other"

    @staticmethod
    def _say(scope: Scope, status: int, begin_s: float, request_id: str) -> None:
        client = scope.get("client") or ("-", 0)
        refused, passed_over = scope.get(REFUSED), scope.get(PASSED_OVER)
        more = "" if refused is None else f": {reason_for_log(refused)}"
        if passed_over:
            more += f" (ignored fields: {passed_over_header(passed_over)})"
        access.info(
            "%s %s %s %d %.0f ms %s%s",
            client[0],
            scope["method"],
            scope["path"][:200].encode("unicode_escape").decode(),
            status,
            (time.monotonic() - begin_s) * 1000.0,
            request_id,
            more,
        )


class Keys:
    """Lets nobody in without one of the keys, except to the open paths."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        # Digests are of one length, so that comparing them tells nothing of a key's length.
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            given = _digest(key.strip().encode("latin-1", "replace"))
            # Every key is compared, whichever fits: the time taken tells nothing.
            fits = sum([hmac.compare_digest(given, digest) for digest in self._digests])
            if scheme.lower() != "bearer" or not fits:
                error = HttpError(
                    401, "The API key is missing or wrong; send 'Authorization: Bearer KEY'."
                )
                note_refusal(scope, error)
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
