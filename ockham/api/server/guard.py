"""`GET /v1/guard`: what the quality guard has found of a model's approximate techniques."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.house import house
from ockham.api.server.openapi.described import describes
from ockham.core.guarded import GuardEvent, GuardStats


class ShownUse(msgspec.Struct, kw_only=True):
    """One use of approximate techniques: see `ockham.core.guarded.Guarded`. `agreement` and `kl`
    are null before anything was scored."""

    techniques: tuple[str, ...]
    settings: str
    workload: str
    state: str
    requests: int
    left_out: int
    texts: int
    positions: int
    agreement: float | None
    kl_positions: int
    kl: float | None
    evidence: float


class ShownGuard(msgspec.Struct, kw_only=True):
    """The guard of a model: see `ockham.core.guarded.GuardStats`. It is not `on` where the server
    was started without --guard."""

    model: str
    on: bool
    share: float = 0.0
    floor: str = ""
    shadowed: int = 0
    queued: int = 0
    dropped: int = 0
    apart: int = 0
    rows: int = 0
    traffic_rows: int = 0
    uses: list[ShownUse] = []
    events: list[GuardEvent] = []


@describes(gives=ShownGuard, queries=("model",))
async def show_guard(http: Request) -> Response:
    """What the quality guard of a model has found. The figures are sums over all tenants: where
    there are several, only the administrator's key sees them."""
    if house(http).settings.has_admin and not caller_of(http).is_admin:
        raise HttpError(
            403,
            "The guard's figures are sums over all tenants: send the administrator's key (the "
            "server's --admin-api-key).",
        )
    server = house(http).models.there(http.query_params.get("model"))
    found = await server.llm.guard()
    shown = _shown(server.names[0], found)
    return Response(msgspec.json.encode(shown), media_type="application/json")


def _shown(model: str, found: GuardStats | None) -> ShownGuard:
    if found is None:
        return ShownGuard(model=model, on=False)
    figures: dict[str, Any] = {
        name: getattr(found, name) for name in found.__struct_fields__ if name != "uses"
    }
    uses = [
        ShownUse(
            **{
                name: getattr(use, name)
                for name in use.__struct_fields__
                if name not in ("agreed", "kl_nats")
            },
            agreement=use.agreement,
            kl=use.kl,
        )
        for use in found.uses
    ]
    return ShownGuard(model=model, on=True, uses=uses, **figures)
