"""`POST /v1/chat/completions/{id}/control`: what may be done to an answer while it is made."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.house import house
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ControlRequest
from ockham.api.server.serving import read
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown


class Controlled(msgspec.Struct):
    """The thought of the answer with this id ends with the next step."""

    id: str
    object: str = "chat.completion.control"
    success: bool = True


@describes(takes=ControlRequest, gives=Controlled, example={"action": "reasoning_end"})
async def control_chat_completion(http: Request) -> Response:
    """End the thought of the answer with the id in the path, which is the one in its stream."""
    request = await read(http, ControlRequest)
    name: str = http.path_params["id"]
    if request.id not in (None, name):
        raise InvalidRequest(
            f"the path names {shown(name)}, and id {shown(request.id)}; leave id out.", "id"
        )
    return await _end_thought(http, name)


@describes(
    takes=ControlRequest,
    gives=Controlled,
    example={"action": "reasoning_end", "id": "chatcmpl-1"},
)
async def control_running(http: Request) -> Response:
    """The same with the id in the body, as llama-server has it."""
    request = await read(http, ControlRequest)
    if request.id is None:
        raise InvalidRequest("id is missing: it is the one in the answer's stream.", "id")
    return await _end_thought(http, request.id)


async def _end_thought(http: Request, name: str) -> Response:
    # A caller finds its own answers only.
    job = house(http).answering.get((caller_of(http).name, name))
    if job is None:
        raise HttpError(
            404,
            f"There is no answer {shown(name)} being made: it is over, or of another caller.",
            param="id",
            code="not_found",
        )
    await job.end_thoughts()
    return Response(msgspec.json.encode(Controlled(name)), media_type="application/json")
