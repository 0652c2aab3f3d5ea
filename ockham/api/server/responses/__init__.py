"""OpenAI's Responses API: `/v1/responses`, without its store."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.errors import HttpError
from ockham.api.server.openapi.described import describes
from ockham.api.server.responses import wire
from ockham.api.server.responses.answer import ResponseAnswer
from ockham.api.server.responses.request import NAMES, ResponseRequest
from ockham.api.server.serving import pass_over, read_chat
from ockham.api.server.turn import in_words_of, take_turn
from ockham.core.numbers import shown

__all__ = ["ALIASES", "ROUTES"]


@describes(
    takes=ResponseRequest,
    gives=wire.Response,
    streams=wire.Event,
    lenient=True,
    example={"input": "Hello", "max_output_tokens": 16},
)
async def create_response(http: Request) -> Response:
    """Answer a conversation; the answer comes whole or as events."""
    with in_words_of({"messages": "input"}):
        body, request = await read_chat(http, ResponseRequest)
    asked = body.asked
    pass_over(http, *asked.skipped)
    with asked.in_its_words():
        turn = await take_turn(http, request, NAMES)
    return await ResponseAnswer(http, turn, asked).respond(turn.job)


@describes()
async def stored_response(http: Request) -> Response:
    """404: nothing is stored."""
    raise HttpError(
        404,
        f"There is no response {shown(http.path_params['response'])}: this server keeps nothing of "
        "a request. Send the whole conversation as input.",
        code="not_found",
    )


ROUTES = (
    Route("/v1/responses", create_response, methods=["POST"]),
    Route("/v1/responses/{response:path}", stored_response, methods=["GET", "POST", "DELETE"]),
)
ALIASES = (Route("/responses", create_response, methods=["POST"]),)
