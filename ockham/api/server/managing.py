"""`/models/load` and `/models/unload`, as llama-server's router and LM Studio have them."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.house import choose, house
from ockham.api.server.openapi.described import describes
from ockham.api.server.serving import pass_over, read
from ockham.core.errors import InvalidRequest


class ManageRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The model to load or to let go. `instance_id` is LM Studio's name for `model`."""

    model: str | None = None
    instance_id: str | None = None

    @property
    def name(self) -> str:
        """Raises `InvalidRequest` if no model is named."""
        found = self.model or self.instance_id
        if not found:
            raise InvalidRequest("model is required and is missing.", "model")
        return found


class Managed(msgspec.Struct, kw_only=True):
    """What became of it. `status` is "loaded", "unloaded", or "unloading" while requests for the
    model go on; `load_time_seconds` is how long the caller waited for it."""

    success: bool = True
    model: str
    instance_id: str
    status: str
    load_time_seconds: float | None = None


@describes(takes=ManageRequest, gives=Managed, example={"model": "lab"})
async def load_model(http: Request) -> Response:
    """Load a model; answered when it is there. One that is loaded already is answered at once."""
    check_may_manage(http)
    name = (await read(http, ManageRequest)).name
    begin_s = time.monotonic()
    await choose(http, name)
    waited_s = round(time.monotonic() - begin_s, 3)
    return _answer(name, "loaded", waited_s)


@describes(takes=ManageRequest, gives=Managed, example={"model": "lab"})
async def unload_model(http: Request) -> Response:
    """Let a model go: requests for it that run end as they should, later ones load it again."""
    check_may_manage(http)
    name = (await read(http, ManageRequest)).name
    return _answer(name, house(http).models.unload(name), None)


ROUTES = (
    Route("/models/load", load_model, methods=["POST"]),
    Route("/models/unload", unload_model, methods=["POST"]),
    Route("/api/v1/models/load", load_model, methods=["POST"]),
    Route("/api/v1/models/unload", unload_model, methods=["POST"]),
)
ALIASES = (
    Route("/v1/models/load", load_model, methods=["POST"]),
    Route("/v1/models/unload", unload_model, methods=["POST"]),
)


def check_may_manage(http: Request) -> None:
    """Raise `HttpError` 403 for who may not say which models are loaded: where there is an
    administrator, only he may."""
    if house(http).settings.has_admin and not caller_of(http).is_admin:
        raise HttpError(
            403,
            "Models are loaded and let go for all tenants: send the administrator's key (the "
            "server's --admin-api-key).",
        )


def stay(http: Request, seconds: float | None) -> None:
    """Have the model of a request stay for so long after the last request for it. Where there are
    several tenants, only the administrator may say so: others are told that it is not kept."""
    if seconds is None:
        return
    if house(http).settings.has_admin and not caller_of(http).is_admin:
        pass_over(http, "keep_alive")
        return
    house(http).models.stay(http.scope, seconds)


def _answer(name: str, status: str, waited_s: float | None) -> Response:
    made = Managed(model=name, instance_id=name, status=status, load_time_seconds=waited_s)
    return Response(msgspec.json.encode(made), media_type="application/json")
