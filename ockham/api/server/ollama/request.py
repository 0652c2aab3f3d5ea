"""Bodies of Ollama's requests, and the chats that they ask for."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import msgspec

from ockham.api.server.asking import with_asks
from ockham.api.server.extras import Extras
from ockham.api.server.fields import ANY
from ockham.api.server.ollama.options import Options
from ockham.api.server.protocol import ChatMessage, ChatRequest
from ockham.core.durations import duration_s
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown, token_ids
from ockham.core.structured_outputs import StructuredOutputsParams

Think = bool | Literal["low", "medium", "high", "max"]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # The oldest messages of a prompt that is too long are never left out here.
    "truncate": (False,),
    "shift": (False,),
    "width": (0,),
    "height": (0,),
    "steps": (0,),
    "images": ([],),
    "_debug_render_only": (False,),
}
"""Fields of requests that are known and have no use here -> the values that ask for nothing."""


class CallFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The function of a call; its arguments are an object."""

    name: str
    arguments: dict[str, Any] | str = {}
    index: int | None = None
    description: str | None = None


class Call(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call of a tool that an earlier answer made."""

    function: CallFunction
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of a chat. Answers can be sent back as they came."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str | list[dict[str, Any]] | None = None
    thinking: str | None = None
    """What the model thought before it answered; the chat template shows it, or leaves it out."""
    images: list[Any] | None = None
    """Refused: this server reads text only."""
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    """Of a message of the role `tool`: the tool whose result it is."""
    tool_call_id: str | None = None
    """The same by the call's id, where calls had one."""
    name: str | None = None


class _Body(Extras, kw_only=True, forbid_unknown_fields=True):
    """What both requests have."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL

    model: str
    """The model's name, with or without `:latest`."""
    stream: bool | None = None
    """Whether the answer comes piece by piece, one JSON object a line; so unless this is false."""
    format: str | dict[str, Any] | None = None
    """`"json"`, or a JSON schema that the answer follows."""
    options: Options = msgspec.field(default_factory=Options)
    think: Think | None = None
    """Whether the model thinks before it answers, or how much."""
    keep_alive: float | str | None = None
    """How long a model of several stays when nobody asks it anything: a number of seconds or a
    duration like "5m", 0 to let it go at once, below 0 to keep it."""
    logprobs: bool | None = None
    """Whether the log probabilities of the answer's tokens are told."""
    top_logprobs: int | None = None
    """So many of the likeliest tokens are told with them."""

    # What is not Ollama's, beside `Extras`.
    user: str | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    def _chat(self, messages: list[ChatMessage], **more: Any) -> ChatRequest:
        keep_alive_seconds(self.keep_alive)
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= 20:
            raise InvalidRequest(
                f"top_logprobs must lie in [0, 20], got {shown(self.top_logprobs)}.",
                "top_logprobs",
            )
        variables, effort = _thinking(self.think)
        kind: type[ChatRequest] = with_asks(ChatRequest, self.asking)
        return kind(
            messages=messages,
            stream=self.streams,
            reasoning_effort=effort,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs if self.logprobs else None,
            user=self.user,
            **{
                **self.extras(),
                "structured_outputs": self._structured_outputs(),
                "chat_template_kwargs": {
                    **(variables or {}),
                    **(self.chat_template_kwargs or {}),
                },
            },
            **self.options.fields(),
            **more,
        )

    def _structured_outputs(self) -> StructuredOutputsParams | None:
        """What the answer must look like. Raises `InvalidRequest`."""
        if self.format in (None, ""):
            return self.structured_outputs
        if self.structured_outputs is not None:
            raise InvalidRequest(
                "format and structured_outputs both say what the answer must look like; send one "
                "of them.",
                "format",
            )
        if self.format == "json":
            return StructuredOutputsParams(json_object=True)
        if isinstance(self.format, str):
            raise InvalidRequest(
                f"format must be 'json' or a JSON schema, got {shown(self.format)}.", "format"
            )
        try:
            return StructuredOutputsParams(json=self.format)
        except InvalidRequest as error:
            said = str(error).replace("structured_outputs.json", "format")
            raise InvalidRequest(said.replace("structured_outputs", "format"), "format") from None


class ChatBody(_Body, kw_only=True):
    """`POST /api/chat`. Without messages the model is loaded, which it is."""

    messages: list[Message] = []
    tools: list[dict[str, Any]] | None = None
    """The tools that the model may call."""
    # What is not Ollama's.
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def asks_nothing(self) -> bool:
        """Whether it only wants the model to be loaded."""
        return not self.messages

    def chat(self) -> ChatRequest:
        """The same as chat completions have it."""
        return self._chat(
            list(_messages(self.messages)),
            tools=self.tools or None,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls,
        )


class GenerateBody(_Body, kw_only=True):
    """`POST /api/generate`. Without a prompt the model is loaded, which it is."""

    prompt: str = ""
    """What the model is asked: a chat of one message, unless `raw`."""
    suffix: str | None = None
    """The text that follows what is generated."""
    system: str | None = None
    """The message of the role `system` before it."""
    template: str | None = None
    """Refused: the chat template is the server's own."""
    context: list[int] | None = None
    """The `context` of an earlier answer, which the prompt goes on from. `/api/chat` does the same
    better."""
    raw: bool | None = None
    """Whether the prompt is completed as it is, without a chat template."""
    images: list[Any] | None = None
    """Refused: this server reads text only."""

    @property
    def asks_nothing(self) -> bool:
        """Whether it only wants the model to be loaded."""
        return not self.prompt and not self.suffix

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a message, rather than text that is gone on with."""
        return not self.raw and not self.suffix

    def chat(self) -> ChatRequest:
        """The same as chat completions have it."""
        _check_images(self.images, "images")
        if self.raw and (self.template or self.system or self.context):
            raise InvalidRequest(
                "raw takes the prompt as it is, so that template, system and context cannot go "
                "with it; leave them out.",
                "raw",
            )
        if self.template:
            raise InvalidRequest(
                "template is not supported: the model's own chat template is used, or the one that "
                "the server was started with (--chat-template). Send raw=true and the whole "
                "prompt, or leave it out.",
                "template",
            )
        if self.suffix and (self.system or self.context):
            raise InvalidRequest(
                "suffix makes a prompt of the model's fill-in tokens, in which system and context "
                "have no place; leave them out.",
                "suffix",
            )
        if self.context:
            token_ids(self.context)
        messages = [ChatMessage(role="user", content=self.prompt)]
        if self.system:
            messages.insert(0, ChatMessage(role="system", content=self.system))
        return self._chat(messages)


class ShowBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /api/show`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("system", "template", "options"), (ANY,)
    )

    model: str | None = None
    name: str | None = None
    """The older name of `model`."""
    verbose: bool | None = None

    @property
    def asked(self) -> str:
        """The name. Raises `InvalidRequest` if there is none."""
        found = self.model or self.name
        if not found:
            raise InvalidRequest("model is required and is missing.", "model")
        return found


class PullBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /api/pull`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("insecure", "username", "password"), (ANY,)
    )

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


def keep_alive_seconds(given: float | str | None) -> float | None:
    """How long a model is to stay, infinite for what is below 0; None if that is not said. Raises
    `InvalidRequest` for what is neither a number of seconds nor a duration."""
    if given is None:
        return None
    try:
        seconds = duration_s(given) if isinstance(given, str) else float(given)
    except ValueError:
        raise InvalidRequest(
            f"keep_alive must be a number of seconds or a duration like '5m', got {shown(given)}.",
            "keep_alive",
        ) from None
    return math.inf if seconds < 0 else seconds


def _thinking(think: Think | None) -> tuple[dict[str, Any] | None, Any]:
    """Variables of the chat template, and an effort."""
    if think is None:
        return None, None
    if think is True:
        return {"enable_thinking": True}, None
    if think is False:
        return None, "none"
    return None, "high" if think == "max" else think  # Ollama's own word; templates know three


def _messages(given: list[Message]) -> Iterator[ChatMessage]:
    """The messages of chat completions. Calls are numbered through where they have no ids, as those
    of Ollama's clients, so that results find them and a chat that goes on begins as before."""
    numbers, waiting = itertools.count(1), _Waiting()
    for index, message in enumerate(given):
        _check_images(message.images, f"messages[{index}].images")
        calls = [_call(call, next(numbers)) for call in message.tool_calls or ()]
        for call in calls:
            waiting.add(call["function"]["name"], call["id"])
        made = ChatMessage(
            role=message.role.lower(),
            content=message.content if calls or message.content is not None else "",
            name=message.name,
            tool_calls=calls or None,
            reasoning_content=message.thinking,
        )
        if made.role == "tool":
            made.name = message.tool_name or message.name
            made.tool_call_id = waiting.take(made.name, message.tool_call_id)
        yield made


def _call(call: Call, number: int) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    # Nine characters: Mistral's templates take no other length.
    return {"id": call.id or f"{number:09d}", "type": "function", "function": function}


class _Waiting:
    """The calls of a chat that have no result yet."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._of_tool: dict[str, deque[str]] = {}

    def add(self, name: str, call_id: str) -> None:
        self._ids[call_id] = None
        self._of_tool.setdefault(name, deque()).append(call_id)

    def take(self, name: str | None, call_id: str | None) -> str | None:
        """The id of the call that a result belongs to: the one that it names, else the first of
        its tool, else the first of all."""
        ours = self._of_tool.get(name or "", deque())
        while call_id is None and ours:
            first = ours.popleft()
            call_id = first if first in self._ids else None
        found = call_id or next(iter(self._ids), None)
        self._ids.pop(found or "", None)
        return found


def _check_images(images: list[Any] | None, where: str) -> None:
    if images:
        raise InvalidRequest(f"{where}: this model reads text only; leave the images out.", where)
