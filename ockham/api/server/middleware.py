"""Around every route: the request's id, the key, the access log, and errors in OpenAI's shape."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ockham.api.server.caller import NOBODY, Caller, key_name, set_caller
from ockham.api.server.errors import HttpError, as_ockham_error, error_response
from ockham.api.server.metrics import Metrics
from ockham.api.server.serving import new_request_id
from ockham.api.server.settings import ServerSettings
from ockham.core.errors import InvalidRequest

access = logging.getLogger("ockham.access")

OPEN_PATHS = frozenset({"/health"})
"""The routes that need no key."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


class Outermost:
    """Gives each request its id, answers whatever was raised below, counts and logs."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], log: bool) -> None:
        """`routes` are the paths that metrics may name; any other is counted as "other"."""
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
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
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
            if status == 499:
                await error_response(known)(scope, receive, send_with_id)
        finally:
            path = scope["path"]
            self._metrics.answered(path if path in self._routes else "other", status)
            if self._log:
                client = scope.get("client") or ("-", 0)
                milliseconds = (time.monotonic() - begin_s) * 1000.0
                access.info(
                    "%s %s %s %d %.0f ms %s",
                    client[0],
                    scope["method"],
                    path[:200].encode("unicode_escape").decode(),
                    status,
                    milliseconds,
                    request_id,
                )


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
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            given = _digest(key.strip().encode("latin-1", "replace"))
            # Every key is compared, whichever fits: the time taken tells nothing.
            fits = [who for digest, who in self._callers if hmac.compare_digest(given, digest)]
            caller = fits[0] if fits and scheme.lower() == "bearer" else None
            if caller is None and not self._open and scope["path"] not in OPEN_PATHS:
                error = HttpError(
                    401, "The API key is missing or wrong; send 'Authorization: Bearer KEY'."
                )
                await error_response(error)(scope, receive, send)
                return
            set_caller(scope, caller or NOBODY)
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
