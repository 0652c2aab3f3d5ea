"""The body of a request of any protocol, by what it holds or by the path that it was sent to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ockham.api.server.errors import decode
from ockham.api.server.messages.request import MessagesBody
from ockham.api.server.ollama.request import ChatBody, GenerateBody
from ockham.api.server.protocol import ChatRequest, CompletionRequest
from ockham.api.server.responses.request import ResponseRequest
from ockham.api.server.serving import AsksForChat
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

OLLAMAS = frozenset({"options", "keep_alive", "think", "format", "truncate", "shift"})
"""Fields that Ollama's chats have and OpenAI's do not."""
ANTHROPICS = frozenset({"system", "stop_sequences", "anthropic_version", "cache_control"})
"""The same of Anthropic's."""

CHATS: Mapping[str, type[AsksForChat]] = {
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesBody,
    "/api/chat": ChatBody,
    "/api/generate": GenerateBody,
}
"""Path -> the body of a protocol that is a translation of chat completions."""
PATHS = ("/v1/chat/completions", "/v1/completions", *CHATS)


class Asked(msgspec.Struct):
    """What a body asks to be answered: a chat, or texts that are gone on from."""

    chat: ChatRequest | None = None
    prompts: list[str | list[int]] = []
    cache_salt: str = ""


def read_any_body(body: Any, path: str | None = None) -> Asked:
    """What a body asks. `path` is where it was sent to; without one the fields tell. Unknown fields
    are passed over. Raises `InvalidRequest`."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"a request's body must be an object, got {shown(body)}.")
    path = (path or _path_of(body)).rstrip("/")
    if path not in PATHS:
        raise InvalidRequest(
            f"requests to {shown(path)} are not known here; {', '.join(PATHS)} are.", "url"
        )
    if body.get("suffix"):
        raise InvalidRequest("a text that is filled in, with a suffix, is not read here.", "suffix")
    raw = msgspec.json.encode(body)
    if path == "/v1/completions":
        completion = decode(raw, CompletionRequest, "ignore")
        completion.check()
        return Asked(None, completion.prompts(), completion.cache_salt or "")
    if path in CHATS:
        asked = decode(raw, CHATS[path], "ignore")
        chat = asked.chat()
        if isinstance(asked, GenerateBody) and not asked.is_chat:
            return Asked(None, [asked.prompt], chat.cache_salt or "")
    else:
        chat = decode(raw, ChatRequest, "ignore")
    chat.check()
    return Asked(chat, [], chat.cache_salt or "")


def _path_of(body: Mapping[str, Any]) -> str:
    if "messages" in body:
        tools = body["tools"] if isinstance(body.get("tools"), list) else []
        schemas = any(isinstance(tool, dict) and "input_schema" in tool for tool in tools)
        if schemas or not ANTHROPICS.isdisjoint(body):
            return "/v1/messages"
        return "/v1/chat/completions" if OLLAMAS.isdisjoint(body) else "/api/chat"
    if "input" in body:
        return "/v1/responses"
    if "prompt" in body:
        openais = OLLAMAS.isdisjoint(body) and "system" not in body and "raw" not in body
        return "/v1/completions" if openais else "/api/generate"
    raise InvalidRequest(
        "a request's body must have messages, an input or a prompt; this one has none of them."
    )
