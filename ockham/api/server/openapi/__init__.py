"""`/openapi.json` and `/docs`: what the server speaks, for programs and for people.

Both are made from the message types when somebody asks for the first time, in a thread.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.house import house
from ockham.api.server.openapi.described import describes

__all__ = ["ROUTES"]


@describes(gives=dict[str, Any])
async def show_openapi(http: Request) -> Response:
    """This API as an OpenAPI document."""
    document, _ = await _made(http)
    return Response(document, media_type="application/json")


@describes(gives=str, media_type="text/html")
async def show_docs(http: Request) -> Response:
    """The OpenAPI document as a page to read."""
    from ockham.api.server.openapi.page import POLICY

    _, page = await _made(http)
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(page, media_type="text/html", headers=headers)


ROUTES = (Route("/openapi.json", show_openapi), Route("/docs", show_docs))


async def _made(http: Request) -> tuple[bytes, bytes]:
    """The document and the page, which are made once: whoever asks meanwhile waits for the same."""
    state = http.app.state
    if getattr(state, "openapi", None) is None or state.openapi.cancelled():
        server = house(http)
        routes, dialects = state.routes, state.dialects

        def make() -> tuple[bytes, bytes]:
            from ockham.api.server.openapi.document import build
            from ockham.api.server.openapi.page import page

            document = build(routes, dialects, server.settings, server.models.names[0])
            return msgspec.json.encode(document), page(document).encode()

        state.openapi = asyncio.ensure_future(asyncio.to_thread(make))
    made: tuple[bytes, bytes] = await asyncio.shield(state.openapi)
    return made
