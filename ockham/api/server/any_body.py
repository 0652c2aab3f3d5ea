"""The body of a request of any protocol, by what it holds or by the path that it was sent to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ockham.api.server.errors import decode
from ockham.api.server.ollama.request import ChatBody, GenerateBody
from ockham.api.server.protocol import ChatRequest, CompletionRequest
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

OLLAMAS = frozenset({"options", "keep_alive", "think", "format", "truncate", "shift"})
"""Fields that Ollama's chats have and OpenAI's do not."""


class Asked(msgspec.Struct):
    """What a body asks to be answered: a chat, or a text that is gone on from."""

    chat: ChatRequest | None = None
    prompts: list[str | list[int]] = []
    cache_salt: str = ""


def read_any_body(body: Any, path: str | None = None) -> Asked:
    """What a body asks. `path` is where it was sent to; without one the fields tell. Raises
    `InvalidRequest`."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"a request's body must be an object, got {shown(body)}.")
    where = path or _path_of(body)
    reader = _READERS.get(where.rstrip("/"))
    if reader is None:
        raise InvalidRequest(
            f"requests to {shown(where)} are not known here; {', '.join(_READERS)} are.", "url"
        )
    return reader(msgspec.json.encode(body))


def _path_of(body: Mapping[str, Any]) -> str:
    if "messages" in body:
        return "/v1/chat/completions" if OLLAMAS.isdisjoint(body) else "/api/chat"
    if "prompt" in body:
        ours = OLLAMAS.isdisjoint(body) and "system" not in body and "raw" not in body
        return "/v1/completions" if ours else "/api/generate"
    raise InvalidRequest("a request's body must have messages or a prompt; this one has neither.")


def _chat(body: bytes) -> Asked:
    request = decode(body, ChatRequest, "ignore")
    request.check()
    return Asked(request, [], request.cache_salt or "")


def _completion(body: bytes) -> Asked:
    request = decode(body, CompletionRequest, "ignore")
    request.check()
    return Asked(None, request.prompts(), request.cache_salt or "")


def _ollama_chat(body: bytes) -> Asked:
    request = decode(body, ChatBody, "ignore")
    return Asked(request.chat(), [], request.cache_salt or "")


def _ollama_generate(body: bytes) -> Asked:
    request = decode(body, GenerateBody, "ignore")
    chat = request.chat()
    if request.raw:
        return Asked(None, [request.prompt], request.cache_salt or "")
    return Asked(chat, [], request.cache_salt or "")


_READERS: dict[str, Callable[[bytes], Asked]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/api/chat": _ollama_chat,
    "/api/generate": _ollama_generate,
}
