"""Errors in Ollama's words: `{"error": "..."}`."""

from __future__ import annotations

import msgspec

from ockham.api.server.dialect import Dialect
from ockham.api.server.errors import error_message
from ockham.core.errors import OckhamError


class OllamaError(msgspec.Struct):
    error: str


def error_line(error: OckhamError) -> bytes:
    """An error as the last line of a stream."""
    return _body(error) + b"\n"


def _body(error: OckhamError) -> bytes:
    return msgspec.json.encode(OllamaError(error_message(error)))


DIALECT = Dialect(
    "/api", lambda error, request_id: _body(error), any_type=True, error_type=OllamaError
)
