"""Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import functools

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.server.caller import caller_of
from ockham.api.server.house import house
from ockham.api.server.kept import digest
from ockham.api.server.messages.answer import MessagesAnswer
from ockham.api.server.messages.dialect import DIALECT
from ockham.api.server.messages.request import NAMES, MessagesBody, MessagesChat, VerbatimBody
from ockham.api.server.messages.wire import Event, Message, TokenCount
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatMessage
from ockham.api.server.serving import body_bytes, pass_over, read_chat, serving
from ockham.api.server.turn import Turn, read_prompt, take_turn

__all__ = ["DIALECT", "ROUTES"]

_EXAMPLE = {"model": "lab", "messages": [{"role": "user", "content": "Hello"}]}


@describes(
    takes=MessagesBody,
    gives=Message,
    streams=Event,
    lenient=True,
    example={**_EXAMPLE, "max_tokens": 20},
)
async def create_message(http: Request) -> Response:
    """The next message of a conversation, whole or as a stream."""
    body, chat = await _read(http)
    turn = await take_turn(http, chat, NAMES, prefill=chat.prefill, clips=True)
    preamble = await _preamble(http, chat, turn) if chat.stays_s else []
    marked = len(turn.prompt.token_ids) if chat.marks_messages else len(preamble)
    kept, caller = serving(http).kept, caller_of(http)
    keep = functools.partial(
        kept.keep, preamble, caller.salt(chat.cache_salt), caller, float(chat.stays_s)
    )
    return await MessagesAnswer(http, turn, body, chat, marked, keep).respond(turn.job)


@describes(takes=MessagesBody, gives=TokenCount, lenient=True, example=_EXAMPLE)
async def count_message_tokens(http: Request) -> Response:
    """How many tokens the prompt of the same message has, to the token."""
    _, chat = await _read(http)
    prompt = await read_prompt(http, chat, NAMES, prefill=chat.prefill)
    count = TokenCount(len(prompt.token_ids))
    return Response(msgspec.json.encode(count), media_type="application/json")


ROUTES = (
    Route("/v1/messages", create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_message_tokens, methods=["POST"]),
)


async def _read(http: Request) -> tuple[MessagesBody, MessagesChat]:
    plain = house(http).settings.normalize_prompts
    body, chat = await read_chat(http, MessagesBody if plain else VerbatimBody)
    assert isinstance(chat, MessagesChat), "a body makes its own kind of chat"
    pass_over(http, *chat.skipped)
    return body, chat


async def _preamble(http: Request, chat: MessagesChat, turn: Turn) -> list[int]:
    """The token ids of a prompt's system prompt and tools: what it shares with the prompt of
    another first message. None for an adapter's state, which cannot be pinned."""
    server = serving(http)
    if server.adapter_asks(chat.model):
        return []
    system = [message for message in chat.messages[:1] if message.role == "system"]
    other = msgspec.structs.replace(
        chat, messages=[*system, ChatMessage(role="user", content=".")], prefill=""
    )
    made_of = (other.messages, other.tools, other.tool_choice, other.parallel_tool_calls)
    shown = (other.chat_template_kwargs, other.reasoning_effort)
    key = await server.llm.in_thread(body_bytes(http), lambda: digest((made_of, shown)))
    sample = await server.kept.sample(key, lambda: read_prompt(http, other, NAMES))
    return turn.prompt.token_ids[: _shared(turn.prompt.token_ids, sample)]


def _shared(first: list[int], second: list[int]) -> int:
    """With how many equal entries two lists begin; by halves, since comparing slices is quick."""
    least, most = 0, min(len(first), len(second))
    while least < most:
        middle = (least + most + 1) // 2
        if first[least:middle] == second[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
