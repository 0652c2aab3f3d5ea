"""A server's adapters: `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them.

An adapter is a name and a directory of the engine's machine. Its weights are read when a request
names it as the model.
"""

from __future__ import annotations

import logging

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ockham.api.adapters import adapter_asks
from ockham.api.async_llm import AsyncLLM
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.house import choose, house
from ockham.api.server.openapi.described import describes
from ockham.api.server.serving import read
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown

log = logging.getLogger("ockham.server")


class LoadAdapterRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/load_lora_adapter`, with vLLM's names. `load_inplace`: an adapter of this name may
    be replaced. `base_model_name` is the model that it is added to, where there are several."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadAdapterRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/unload_lora_adapter`, with vLLM's names; the number tells nothing here."""

    lora_name: str
    lora_int_id: int | None = None


async def check_modules(llm: AsyncLLM, modules: dict[str, str], names: tuple[str, ...]) -> None:
    """Raise ConfigError if the adapters that a server is started with cannot be served."""
    for name, path in modules.items():
        if name in names:
            raise ConfigError(f"an adapter is called {name!r}, as the model is; rename it.")
        try:
            await llm.check_adapter(adapter_asks(llm.config.adapter, name, path))
        except InvalidRequest as error:
            raise ConfigError(f"the adapter {name!r} cannot be served: {error}") from error


@describes(
    takes=LoadAdapterRequest,
    gives=str,
    media_type="text/plain",
    example={"lora_name": "mine", "lora_path": "/adapters/mine"},
)
async def load_adapter(http: Request) -> Response:
    """Serve an adapter under a name, which no model and no adapter may have."""
    _check_permission(http)
    request = await read(http, LoadAdapterRequest)
    name, path = request.lora_name, request.lora_path
    if not name or not path:
        raise InvalidRequest("lora_name and lora_path must not be empty.", "lora_name")
    server = await choose(http, request.base_model_name)
    taken = name in house(http).models.names
    if taken and not (name in server.adapters and request.load_inplace):
        raise InvalidRequest(
            f"there is a model {shown(name)} here; choose another name, unload it, or send "
            "load_inplace for an adapter.",
            "lora_name",
        )
    await server.llm.check_adapter(adapter_asks(server.llm.config.adapter, name, path))
    server.adapters[name] = path
    log.info("Adapter %s is served from %s.", shown(name), shown(path))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@describes(
    takes=UnloadAdapterRequest, gives=str, media_type="text/plain", example={"lora_name": "mine"}
)
async def unload_adapter(http: Request) -> Response:
    """Serve an adapter no longer. Requests that run with it end as they should."""
    _check_permission(http)
    request = await read(http, UnloadAdapterRequest)
    served = (model.adapters for model in house(http).models.shown())
    adapters = next((each for each in served if request.lora_name in each), None)
    if adapters is None:
        raise HttpError(
            404,
            f"There is no adapter {shown(request.lora_name)} here.",
            param="lora_name",
            code="model_not_found",
        )
    del adapters[request.lora_name]
    return PlainTextResponse(f"Success: LoRA adapter '{request.lora_name}' removed successfully.")


def _check_permission(http: Request) -> None:
    """Who loads an adapter names a path of the server's machine: nobody may without a key."""
    settings = house(http).settings
    if settings.has_admin:
        if not caller_of(http).is_admin:
            raise HttpError(
                403,
                "Adapters are for the administrator: send the administrator's key (the server's "
                "--admin-api-key).",
            )
    elif not settings.api_keys:
        raise HttpError(
            403,
            "Adapters can only be loaded and unloaded with a key, because they are named by paths "
            "of the server's machine: start it with --admin-api-key, or name them with "
            "--lora-modules.",
        )
