"""Reading a request's body, of the right kind and no larger than allowed."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from ockham.api.server.errors import HttpError
from ockham.core.errors import RequestTimeout

BODY_TIMEOUT_S = 60.0
"""A client that takes longer to send its request is not waited for."""


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body. Raises `HttpError` 415 or 413, or `RequestTimeout`, before more is read.

    Only JSON is taken: a page in a browser cannot send that to a server that has not allowed its
    origin, while it can send plain text or a form to any address, 127.0.0.1 included.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(
            415, f"The Content-Type must be application/json, got {kind[:80]!r}.", param=None
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise _too_large(most_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError as error:
        raise RequestTimeout(
            f"The request's body did not arrive within {BODY_TIMEOUT_S:.0f} s."
        ) from error
    except ClientDisconnect as error:
        raise HttpError(499, "The client went away.") from error
    return bytes(body)


def _too_large(most_bytes: int) -> HttpError:
    return HttpError(
        413,
        f"The request's body is larger than {most_bytes} bytes. Split the request, or start the "
        "server with a larger --max-body-bytes.",
    )
