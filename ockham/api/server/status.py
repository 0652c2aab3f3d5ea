"""What a server says of itself: models, health, version, metrics."""

from __future__ import annotations

import platform

import msgspec
from msgspec import UNSET
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import ockham
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.house import NO_NAMES, Shown, house, no_such_model
from ockham.api.server.openapi.described import describes
from ockham.api.server.wire import Model, ModelList, ModelStatus
from ockham.model.checkpoint.generation_config import chat_defaults


@describes(gives=ModelList)
async def list_models(http: Request) -> Response:
    """The models, once for each of their names, and their adapters."""
    models = ModelList(
        [
            _model(model, name)
            for model in house(http).models.shown()
            for name in (*model.names, *model.adapters)
        ]
    )
    if "client_version" in http.query_params:  # as Codex asks
        models.models = []
    return Response(msgspec.json.encode(models), media_type="application/json")


@describes(gives=Model)
async def show_model(http: Request) -> Response:
    """One model; 404 for a name that none has."""
    models, name = house(http).models, http.path_params["model"]
    if f"{name}/" in models.names:  # a directory; paths come here without a slash at the end
        name += "/"
    for model in models.shown():
        if name in NO_NAMES or name in model.names or name in model.adapters:
            return Response(msgspec.json.encode(_model(model, name)), media_type="application/json")
    raise no_such_model(name, models.names)


def _model(model: Shown, name: str) -> Model:
    ready = model.ready
    made = Model(
        id=name,
        created=model.created_s,
        root=model.adapters.get(name, model.config.model),
        parent=model.names[0] if name in model.adapters else None,
    )
    if model.tasks:
        made.tasks = model.tasks
    if ready is not None:
        made.max_model_len = ready.max_model_len
        made.sampling_defaults = dict(ready.sampling_defaults)
        made.chat_sampling_defaults = chat_defaults(
            ready.sampling_defaults, model.config.generation_config
        )
        made.eos_token_ids = ready.eos_token_ids
    if model.managed:
        made.status = ModelStatus(
            value=model.state,
            failed=True if model.failed else UNSET,
            message=model.failed or UNSET,
            bytes=UNSET if model.nbytes is None else model.nbytes,
            expires_at=UNSET if model.expires_s is None else int(model.expires_s),
        )
    return made


@describes()
async def health(http: Request) -> Response:
    """200 with no body; 503 while an engine is not there or is stuck, or the server shuts down. A
    model that was let go, or could not be loaded, is no reason."""
    models = house(http).models
    if models.closed:
        raise HttpError(503, "The server is shutting down.")
    trouble = models.trouble()
    if trouble is not None:
        raise HttpError(503, trouble)
    return Response(status_code=200)


@describes(gives=dict[str, str])
async def version(http: Request) -> Response:
    """Versions, and the numerics id that everything promised about bits holds within: that of the
    first model, once it has been loaded."""
    first = house(http).models.shown()[0]
    said = {"version": ockham.__version__, "python": platform.python_version()}
    if first.ready is not None:
        said["numerics_id"] = first.ready.numerics_id
    return JSONResponse(said)


@describes(gives=str, media_type="text/plain")
async def metrics(http: Request) -> Response:
    """Prometheus' text format, or OpenMetrics where that is asked for. Reading changes nothing.

    The figures are sums over all tenants: where there are several, only the administrator's key
    sees them."""
    if house(http).settings.has_admin and not caller_of(http).is_admin:
        raise HttpError(
            403,
            "The metrics are sums over all tenants: send the administrator's key (the server's "
            "--admin-api-key).",
        )
    encode, kind = choose_encoder(http.headers.get("accept", ""))
    registry = house(http).registry
    return Response(encode(registry), media_type=None, headers={"Content-Type": kind})
