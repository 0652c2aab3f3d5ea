"""What a server says of itself: models, health, version, metrics."""

from __future__ import annotations

import platform

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import ockham
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.openapi.described import describes
from ockham.api.server.serving import Serving, serving
from ockham.api.server.wire import Model, ModelList


@describes(gives=ModelList)
async def list_models(http: Request) -> Response:
    """The model, once for each of its names, and its adapters."""
    server = serving(http)
    models = ModelList([_model(server, name) for name in (*server.names, *server.adapters)])
    if "client_version" in http.query_params:  # as Codex asks
        models.models = []
    return Response(msgspec.json.encode(models), media_type="application/json")


@describes(gives=Model)
async def show_model(http: Request) -> Response:
    """One model; 404 for a name that it does not have."""
    server = serving(http)
    name = http.path_params["model"]
    if f"{name}/" in server.names:  # a directory; paths come here without a slash at the end
        name += "/"
    server.check_model(name)
    return Response(msgspec.json.encode(_model(server, name)), media_type="application/json")


def _model(server: Serving, name: str) -> Model:
    return Model(
        id=name,
        created=server.created_s,
        root=server.adapters.get(name, server.llm.config.model),
        parent=server.names[0] if name in server.adapters else None,
        max_model_len=server.llm.ready.max_model_len,
        sampling_defaults=server.llm.default_parameters,
        chat_sampling_defaults=server.llm.default_chat_parameters,
        eos_token_ids=server.llm.ready.eos_token_ids,
        tasks=server.llm.ready.tasks,
    )


@describes()
async def health(http: Request) -> Response:
    """200 with no body; 503 while the engine is not there, is stuck, or the server shuts down."""
    server = serving(http)
    if server.gate.closed:
        raise HttpError(503, "The server is shutting down.")
    trouble = server.llm.client.trouble()
    if trouble is not None:
        raise HttpError(503, trouble)
    return Response(status_code=200)


@describes(gives=dict[str, str])
async def version(http: Request) -> Response:
    """Versions, and the numerics id that everything promised about bits holds within."""
    return JSONResponse(
        {
            "version": ockham.__version__,
            "python": platform.python_version(),
            "numerics_id": serving(http).llm.ready.numerics_id,
        }
    )


@describes(gives=str, media_type="text/plain")
async def metrics(http: Request) -> Response:
    """Prometheus' text format, or OpenMetrics where that is asked for. Reading changes nothing.

    The figures are sums over all tenants: where there are several, only the administrator's key
    sees them."""
    if serving(http).settings.has_admin and not caller_of(http).is_admin:
        raise HttpError(
            403,
            "The metrics are sums over all tenants: send the administrator's key (the server's "
            "--admin-api-key).",
        )
    encode, kind = choose_encoder(http.headers.get("accept", ""))
    registry = serving(http).metrics.registry
    return Response(encode(registry), media_type=None, headers={"Content-Type": kind})
