"""In whose words an error is told: each protocol has a shape of its own for them.

What stands around the routes (keys, budgets, unknown paths) refuses requests as well, so the path
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from ockham.api.server.errors import ErrorBody, error_body, error_headers
from ockham.core.errors import OckhamError

_SCOPE = "ockham.dialect"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the paths that begin with `prefix` say of errors. `error_body` makes the JSON of an
    error and the id of the request, `error_type` is its type. `any_type`: bodies need not say that
    they are JSON. `id_header` is where else than in X-Request-Id answers have the request's id."""

    prefix: str
    error_body: Callable[[OckhamError, str], bytes]
    any_type: bool = False
    error_type: Any = ErrorBody
    id_header: str | None = None

    def has(self, path: str) -> bool:
        """Whether errors of a path are told in this one."""
        return path == self.prefix or path.startswith(self.prefix.rstrip("/") + "/")


OPENAI = Dialect("/", lambda error, request_id: error_body(error))
"""Of every path that no other dialect has."""


def set_dialect(scope: Scope, dialects: Sequence[Dialect]) -> None:
    """Remember which of the dialects a request is answered in."""
    path = scope["path"]
    for dialect in dialects:
        if dialect.has(path):
            scope[_SCOPE] = dialect


def dialect_of(scope: Scope) -> Dialect:
    """The dialect that a request is answered in."""
    found: Dialect = scope.get(_SCOPE, OPENAI)
    return found


def takes_any_type(scope: Scope) -> bool:
    """Whether a body is taken as JSON whatever it says that it is."""
    return dialect_of(scope).any_type


def error_response(error: OckhamError, scope: Scope) -> Response:
    """The response that says what went wrong, and when to come back if that may help."""
    body = dialect_of(scope).error_body(error, scope.get("ockham.request_id", ""))
    return Response(body, error.status, error_headers(error), "application/json")
