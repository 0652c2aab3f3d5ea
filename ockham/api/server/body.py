"""Reading a request's body: of the right kind, no larger than allowed, and within the budget that
all bodies share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from ockham.api.server.dialect import takes_any_type
from ockham.api.server.errors import HttpError
from ockham.api.server.settings import ServerSettings
from ockham.core.errors import RequestTimeout

FREE_BYTES = 16 << 10
"""Of each body, outside the budget: whoever fills the budget shuts out no ordinary request. The
bound on connections bounds these too."""


class Budget:
    """The bytes of the bodies of all requests that are being served."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.used_bytes = 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """The share of one request, for as long as it is served: what is made of a body lives as
        long as its request, and is no smaller."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.used_bytes -= lease.bytes


class Lease:
    """What one request has of a `Budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.bytes = 0
        """Of the budget."""
        self.body_bytes = 0
        """Of the body, once it was read."""

    def grow(self, size_bytes: int) -> None:
        """Make room for a body that has become so large. Raises `HttpError` 503."""
        more = max(0, size_bytes - FREE_BYTES) - self.bytes
        budget = self._budget
        if more > 0 and budget.used_bytes + more > budget.most_bytes:
            raise HttpError(
                503,
                f"The bodies of the requests being served have {budget.used_bytes} bytes, of at "
                f"most {budget.most_bytes} (max_bodies_bytes); try again later.",
                code="too_many_bytes",
            )
        if more > 0:
            self.bytes += more
            budget.used_bytes += more


async def read_body(request: Request, settings: ServerSettings, lease: Lease) -> bytearray:
    """The body. Raises `HttpError` 415, 413 or 503, or `RequestTimeout`, before more is read.

    Only JSON is taken: a page in a browser cannot send that to a server that has not allowed its
    origin, while it can send plain text or a form to any address, 127.0.0.1 included. Where a
    protocol takes anything as JSON, a browser is known by the headers that it always sends then.
    """
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    from_page = "origin" in headers or "sec-fetch-site" in headers
    if kind != "application/json" and (from_page or not takes_any_type(request.scope)):
        raise HttpError(415, f"The Content-Type must be application/json, got {kind[:80]!r}.")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise HttpError(
            415,
            f"The Content-Encoding {coding[:80]!r} is not supported; send the body as it is, "
            "without a Content-Encoding.",
        )
    most_bytes = settings.max_body_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise _too_large(most_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for part in request.stream():
                if len(body) + len(part) > most_bytes:
                    raise _too_large(most_bytes)
                lease.grow(len(body) + len(part))
                body += part
    except TimeoutError as error:
        raise RequestTimeout(
            f"The request's body did not arrive within {settings.body_timeout_s:g} s."
        ) from error
    except ClientDisconnect as error:
        raise HttpError(499, "The client went away.") from error
    return body


def _too_large(most_bytes: int) -> HttpError:
    return HttpError(
        413,
        f"The request's body is larger than {most_bytes} bytes. Split the request, or start the "
        "server with a larger --max-body-bytes.",
    )
