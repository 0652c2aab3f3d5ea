"""Errors in Anthropic's words."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from ockham.api.server.dialect import Dialect
from ockham.api.server.errors import error_message
from ockham.api.server.sse import event
from ockham.core.errors import OckhamError

THREADS_UNSUPPORTED = "thread_unsupported_request"
"""What tells a client that it must send whole conversations."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""The official clients go by the status: they repeat 429 and 503 after the time that Retry-After
says."""


class ErrorDetails(msgspec.Struct):
    error_code: str


class ErrorInfo(msgspec.Struct):
    type: str
    message: str
    details: ErrorDetails | UnsetType = UNSET


class MessagesError(msgspec.Struct, tag="error"):
    error: ErrorInfo
    request_id: str


def _body(error: OckhamError, request_id: str) -> bytes:
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    said = ErrorInfo(_TYPES.get(error.status, other), error_message(error))
    if getattr(error, "code", None) == THREADS_UNSUPPORTED:
        said.details = ErrorDetails(THREADS_UNSUPPORTED)
    return msgspec.json.encode(MessagesError(said, request_id))


def error_event(error: OckhamError, request_id: str) -> bytes:
    """An error as the last event of a stream."""
    return event(_body(error, request_id), "error")


DIALECT = Dialect("/v1/messages", _body, error_type=MessagesError, id_header="request-id")
