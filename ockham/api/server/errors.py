"""What errors say, in OpenAI's shape: `{"error": {message, type, param, code}}`. For the shapes of
other protocols see `dialect`."""

from __future__ import annotations

import logging
import re
from typing import TypeVar

import msgspec

from ockham.api.server.asking import with_asks
from ockham.api.server.fields import Sieve, UnknownFields, choices
from ockham.api.server.synonyms import translated
from ockham.core.errors import InvalidRequest, OckhamError, fault

T = TypeVar("T")

LONGEST_NAME = 200
"""Characters of a caller's names that an error shows, at either end."""

log = logging.getLogger("ockham.server")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_CODES = {
    401: "invalid_api_key",
    403: "admin_key_required",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "queue_full",
    503: "service_unavailable",
}
_RETRY_AFTER_S = {429: 1, 503: 2}
MOST_CHARACTERS = 2000
"""Of a message: a library, or a chat template, may say anything about what a caller sent."""


class HttpError(OckhamError):
    """An error that only exists in HTTP: a wrong key, an unknown path, a body that is too large."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class ErrorInfo(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    error: ErrorInfo


def as_ockham_error(error: Exception) -> OckhamError:
    """The error as the caller may see it: what is not raised on purpose is logged, not shown."""
    if isinstance(error, OckhamError):
        return error
    log.error("A request met a fault of the server.", exc_info=error)
    return fault()


def error_message(error: OckhamError) -> str:
    """What went wrong, in as many characters as an answer may have of it."""
    return _cut(str(error), MOST_CHARACTERS)


def error_body(error: OckhamError) -> bytes:
    """The JSON body that says what went wrong."""
    code = getattr(error, "code", None) or _CODES.get(error.status)
    param = getattr(error, "param", None)
    return msgspec.json.encode(
        ErrorBody(
            ErrorInfo(
                message=error_message(error),
                type=_TYPES.get(error.status, "server_error"),
                param=None if param is None else _cut(param, MOST_CHARACTERS // 10),
                code=code,
            )
        )
    )


def error_headers(error: OckhamError) -> dict[str, str]:
    """What the headers of an error's response say: when to come back, if that may help."""
    headers = {}
    if error.status in _RETRY_AFTER_S:
        headers["Retry-After"] = str(_RETRY_AFTER_S[error.status])
    if error.status == 408:
        # The official client repeats a 408 by itself: here that would only do the work again.
        headers["X-Should-Retry"] = "false"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_WHERE = re.compile(r"(.*) - at (`key` in )?`\$\.?(.*)`", re.DOTALL)


def decode(
    body: bytes | bytearray,
    kind: type[T],
    unknown: UnknownFields = "refuse",
    passed_over: list[str] | None = None,
) -> T:
    """A request body as `kind`. Raises `InvalidRequest` that names the field at fault.

    The names of unknown fields that are not refused are added to `passed_over`.
    """
    sieve = Sieve(unknown)
    try:
        content = msgspec.json.decode(body)
        kind = with_asks(kind, content if isinstance(content, dict) else ())
        if isinstance(content, dict) and getattr(kind, "has_synonyms", False):
            content = translated(content, getattr(kind, "__struct_fields__", ()))
        request = msgspec.convert(sieve.take(content, kind), kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidRequest):
            raise error.__cause__ from None
        raise _invalid(str(error), kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply to be read.") from error
    if passed_over is not None:
        passed_over += sieve.passed_over
    return request


def _invalid(reason: str, kind: type) -> InvalidRequest:
    """msgspec's reason, such as "Expected `int`, got `str` - at `$.top_k`", as a sentence."""
    if "out of range" in reason:  # of a number that JSON has and no field could: not said of which
        return InvalidRequest(
            "The body holds a number that is out of range: integers must lie in "
            "[-2**63, 2**64 - 1], and no number may be beyond 1e308."
        )
    if len(reason) > 2 * LONGEST_NAME:  # it quotes names of the caller's
        reason = f"{reason[:LONGEST_NAME]}...{reason[-LONGEST_NAME:]}"
    found = _WHERE.fullmatch(reason)
    what, path = (found[1], found[3]) if found else (reason, "")
    if missing := _MISSING.fullmatch(what):
        field = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"{field} is required and is missing.", field)
    allowed = choices(kind, path) if what.startswith("Invalid enum value") else []
    if allowed:
        what += f"; send {' or '.join(map(repr, allowed))}"
    subject = f"A key of {path}" if found and found[2] else path or "The body"
    return InvalidRequest(f"{subject} is wrong: {_lower(what)}.", path or None)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].replace("`", "'").rstrip(".")
