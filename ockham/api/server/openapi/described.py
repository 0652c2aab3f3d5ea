"""What a route takes and gives, said beside the route: the OpenAPI document is made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]
H = TypeVar("H", bound=Handler)

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Description:
    """`takes` is the type of the body, `gives` of the answer (None: without one), `streams` of one
    object of a stream, all as msgspec knows them. `lenient`: fields that the body's type does not
    have are passed over. `example` is a body. `form` are the fields of a body that is a form, where
    `file` is a file's; `queries` those that the address may have."""

    takes: Any = None
    gives: Any = None
    streams: Any = None
    media_type: str = JSON
    stream_type: str = EVENTS
    lenient: bool = False
    example: dict[str, Any] | None = None
    form: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()


_found: dict[Any, Description] = {}


def describes(
    *,
    takes: Any = None,
    gives: Any = None,
    streams: Any = None,
    media_type: str = JSON,
    stream_type: str = EVENTS,
    lenient: bool = False,
    example: dict[str, Any] | None = None,
    form: tuple[str, ...] = (),
    queries: tuple[str, ...] = (),
) -> Callable[[H], H]:
    """Decorates the function that answers a route; the arguments are those of `Description`. The
    first paragraph of its docstring says what the route does."""

    def note(handler: H) -> H:
        _found[handler] = Description(
            takes, gives, streams, media_type, stream_type, lenient, example, form, queries
        )
        return handler

    return note


def description_of(handler: Any) -> Description | None:
    """What was said of a function; None if nothing was."""
    return _found.get(handler)
