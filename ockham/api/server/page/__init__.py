"""`GET /`: the page that a person talks to a model on.

It is one file. All that it does it asks of the routes that clients use, by addresses relative to
its own, so that it works behind a path prefix too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.openapi.described import describes

_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The file, and the headers that it is sent with: no script and no style runs but its own,
    which are known by their digests, and nothing is loaded from anywhere else."""
    body = resources.files(__package__).joinpath("page.html").read_bytes()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(body, b'script')}",
            f"style-src {_digest(body, b'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    tag = hashlib.sha256(body).hexdigest()[:16]
    return body, {**_HEADERS, "Content-Security-Policy": policy, "ETag": f'"{tag}"'}


def _digest(body: bytes, element: bytes) -> str:
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (element, element), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


@describes(gives=str, media_type="text/html")
async def show_page(http: Request) -> Response:
    """The page, for browsers. It holds nothing of the server's, so that it needs no key. Ollama's
    command line asks for its head before anything else."""
    body, headers = _page()
    if http.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="text/html", headers=headers)


ROUTES = (Route("/", show_page),)
