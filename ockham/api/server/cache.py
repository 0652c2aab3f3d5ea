"""`/v1/cache`: what the prefix cache holds, and prefixes that stay."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.prompts import Encoded
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.fields import NEUTRAL
from ockham.api.server.house import GENERATE, choose, house
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatMessage, TokenizeRequest
from ockham.api.server.serving import Serving, body_bytes, read
from ockham.api.server.turn import render
from ockham.core.errors import InvalidRequest
from ockham.engine.messages import CacheQuery, CacheReport, Pin, Unpin

MAX_NODES = 100_000
"""Most nodes of the cache that one answer may show."""


class CacheRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/cache`. Only what was cached under `cache_salt` is shown; to the administrator's
    key without one, everything."""

    model: str | None = None
    cache_salt: str | None = None
    most_nodes: int | None = None

    def check(self) -> None:
        if self.most_nodes is not None and not 0 <= self.most_nodes <= MAX_NODES:
            raise InvalidRequest(
                f"most_nodes must lie in [0, {MAX_NODES}], got {self.most_nodes}.", "most_nodes"
            )


class PinRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/cache/pin`: a prompt, or the messages that chats begin with."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL

    model: str | None = None
    name: str | None = None
    prompt: str | list[int] | None = None
    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None

    def check(self) -> None:
        self.template().check()

    def template(self) -> TokenizeRequest:
        """The same as a request to be tokenized, without the beginning of an answer."""
        prompt = None if self.prompt is None else ""
        return TokenizeRequest(
            prompt=prompt,
            messages=self.messages,
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=False,
        )


class UnpinRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/cache/unpin`. `tenant`, as `/v1/cache` names it, is for the administrator's key."""

    model: str | None = None
    name: str
    cache_salt: str | None = None
    tenant: str | None = None


@describes(takes=CacheRequest, gives=dict[str, Any], example={"most_nodes": 10})
async def show_cache(http: Request) -> Response:
    """What the caller's requests have left in the prefix tree under a salt; the administrator sees
    everything. Texts are shown to who sends a salt, to the administrator, and of requests without
    a salt if the server was started with --cache-text."""
    request, caller = await read(http, CacheRequest), caller_of(http)
    request.check()
    server = house(http).models.there(request.model)
    everything = caller.is_admin and request.cache_salt is None
    query = CacheQuery(
        ask_id=uuid.uuid4().hex,
        salt=None if everything else caller.salt(request.cache_salt),
        most_nodes=1000 if request.most_nodes is None else request.most_nodes,
        texts=caller.is_admin or bool(request.cache_salt) or server.settings.cache_text,
    )
    return _answer(await server.llm.client.ask(query))


@describes(
    takes=PinRequest,
    gives=dict[str, Any],
    example={"name": "greeting", "prompt": "Once upon a time"},
)
async def pin_prefix(http: Request) -> Response:
    """Compute a prefix, if it is not held, and keep it until it is unpinned."""
    request, caller = await read(http, PinRequest), caller_of(http)
    request.check()
    server = await choose(http, request.model, GENERATE)
    prompt = await _prompt(server, request, body_bytes(http))
    salt = caller.salt(request.cache_salt)
    name = request.name or f"pin-{uuid.uuid4().hex[:8]}"
    pin = Pin(name, prompt.token_ids, salt, caller.name, caller.owners)

    async def ask(only_check: bool) -> CacheReport:
        query = CacheQuery(ask_id=uuid.uuid4().hex, salt=salt, pin=pin, only_check=only_check)
        return _checked(await server.llm.client.ask(query))

    await ask(True)
    tenant = caller.tenant(request.cache_salt, None)
    await server.pinning(http, prompt, salt, tenant).finals()
    return _answer(await ask(False), name=name)


@describes(takes=UnpinRequest, gives=dict[str, Any], example={"name": "greeting"})
async def unpin_prefix(http: Request) -> Response:
    """Let a prefix go again; 404 for a name that no pin of the caller has. The administrator may
    unpin anybody's."""
    caller = caller_of(http)
    request = await read(http, UnpinRequest)
    if request.tenant is not None and not caller.is_admin:
        raise HttpError(
            403,
            "Only the administrator's key may name a tenant; leave it out.",
            param="tenant",
        )
    anybody = caller.is_admin and request.cache_salt is None
    salt = None if anybody else caller.salt(request.cache_salt)
    query = CacheQuery(
        ask_id=uuid.uuid4().hex, salt=salt, unpin=Unpin(request.name, salt, request.tenant)
    )
    report = await house(http).models.there(request.model).llm.client.ask(query)
    if report.error is not None and report.param == "name":
        raise HttpError(404, report.error, param="name", code="not_found")
    return _answer(report)


async def _prompt(server: Serving, request: PinRequest, size: int) -> Encoded:
    special = request.add_special_tokens
    if request.messages is not None:
        text, _ = await render(server, request.template(), size)
        return await server.llm.read(text, add_special_tokens=bool(special))
    assert request.prompt is not None, "a checked request has one of the two"
    return await server.llm.read(request.prompt, add_special_tokens=special is not False)


def _checked(report: CacheReport) -> CacheReport:
    """Raises `InvalidRequest` with what the report says is wrong."""
    if report.error is not None:
        raise InvalidRequest(report.error, report.param)
    return report


def _answer(report: CacheReport, **more: str) -> Response:
    """`more`, and what the report says of the cache; the rest is between the two processes."""
    said = msgspec.structs.asdict(_checked(report))
    hidden = ("ask_id", "error", "param")
    shown = {name: value for name, value in said.items() if name not in hidden}
    return Response(msgspec.json.encode(more | shown), media_type="application/json")
