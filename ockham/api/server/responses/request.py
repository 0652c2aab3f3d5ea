"""The body of `POST /v1/responses`, and the chat that it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal

import msgspec

from ockham.api.server.asking import with_asks
from ockham.api.server.extras import Extras
from ockham.api.server.fields import ANY
from ockham.api.server.protocol import ChatRequest, Effort
from ockham.api.server.response_format import JsonSchema, ResponseFormat
from ockham.api.server.responses.items import Conversation, InputItem
from ockham.api.server.responses.tools import Toolbox
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

LOGPROBS = "message.output_text.logprobs"
SEALED_THOUGHTS = "reasoning.encrypted_content"

NAMES = {
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Fields of a chat completion -> what they are called here."""

_HOUSE = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "stop", "parallel_tool_calls", "model", "stream", "user"),
    *("safety_identifier", "prompt_cache_key"),
)
"""Fields that chat completions have under the same names, beside `Extras`."""

_PLACE = re.compile(r"\b(messages|tools)\[(\d{1,9})\](?:\.function)?")
_NEEDS_STORE = "This server keeps nothing of a request; "


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    """Of the schema; changes nothing."""
    schema: dict[str, Any] | None = None
    """With `json_schema`: what the text follows, `strict` or not."""
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the answer is written."""

    format: TextFormat = msgspec.field(default_factory=TextFormat)
    verbosity: Literal["low", "medium", "high"] | None = None
    """Changes nothing: no model here was trained for it."""


class Reasoning(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the model thinks before it answers."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"context": (ANY,), "mode": (ANY,)}

    effort: Effort | None = None
    """What the chat template makes of it; `none`: no thought."""
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    """Unless it is left out or `none`, thoughts are told as `summary`, whole, and not as
    `content`: nothing is summarized."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The old name of `summary`."""


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of a stream."""

    include_obfuscation: bool | None = None
    """Changes nothing: events are not padded."""


class ResponseRequest(Extras, kw_only=True, forbid_unknown_fields=True, dict=True):
    """`POST /v1/responses`. Fields that are not listed are passed over, and named in the header
    `X-Ockham-Ignored-Fields`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **dict.fromkeys(
            ("client_metadata", "prompt_cache_retention", "prompt_cache_options"), (ANY,)
        ),
        "moderation": (),
    }

    model: str | None = None
    input: str | list[InputItem]
    """A text, or the whole conversation so far."""
    instructions: str | None = None
    """What the system message says."""
    max_output_tokens: int | None = None
    """Tokens of the answer, thoughts included."""
    stream: bool | None = None
    """Whether the answer comes as events."""
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    """Functions, custom tools, and namespaces of these. Other tools are skipped with a warning."""
    tool_choice: str | dict[str, Any] | None = None
    """`auto`, `none`, `required`, one tool, or `allowed_tools`."""
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    """Changes nothing: it counts calls of tools that OpenAI runs."""
    reasoning: Reasoning = msgspec.field(default_factory=Reasoning)
    text: TextConfig = msgspec.field(default_factory=TextConfig)
    top_logprobs: int | None = None
    """So many of the likeliest tokens are told with each token of the answer, at most 20."""
    include: list[str] | None = None
    """`message.output_text.logprobs` and `reasoning.encrypted_content`; others have nothing to show
    here."""
    truncation: Literal["auto", "disabled"] | None = None
    """Nothing is left out of a conversation: one that is too long is refused."""
    store: bool | None = None
    """Nothing is stored, whatever it says."""
    previous_response_id: str | None = None
    """Refused: send the conversation as `input`."""
    conversation: Any = None
    """Refused: send the conversation as `input`."""
    background: bool | None = None
    """`true` is refused."""
    prompt: Any = None
    """Refused: stored prompts are OpenAI's."""
    service_tier: str | None = None
    """Changes nothing."""
    metadata: dict[str, str] | None = None
    """Comes back in the answer."""
    prompt_cache_key: str | None = None
    """Says that what this request leaves in the cache will be used again, unless `cache_hint` says
    otherwise. The cache finds prefixes without it."""
    user: str | None = None
    safety_identifier: str | None = None

    # What is not OpenAI's, beside `Extras`.
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None

    @cached_property
    def asked(self) -> Asked:
        """What it asks for. Raises `InvalidRequest`."""
        return Asked(self)

    def chat(self) -> ChatRequest:
        """The same as chat completions have it. Raises `InvalidRequest`."""
        return self.asked.chat()


class Asked:
    """A request, and what became of its conversation and tools."""

    def __init__(self, body: ResponseRequest) -> None:
        """Raises `InvalidRequest`."""
        _check(body)
        self.body = body
        self.tools = Toolbox(body.tools or ())
        self.tools_json = msgspec.Raw(msgspec.json.encode(body.tools or []))
        """As they come back in the answer: they may be large, and are told several times."""
        self._conversation = Conversation()
        if body.instructions:
            self._conversation.instruct(body.instructions)
        items = body.input
        if isinstance(items, str):
            items = [InputItem(role="user", content=items)]
        for index, item in enumerate(items):
            where = "input" if isinstance(body.input, str) else f"input[{index}]"
            self._conversation.add(item, where)

    @property
    def skipped(self) -> list[str]:
        """Tools and items that were left out, by their places."""
        return [*self.tools.skipped, *self._conversation.skipped]

    @property
    def warnings(self) -> list[str]:
        """What is to be said of them."""
        found = []
        if self.tools.skipped:
            found.append(
                f"Tools were skipped that do not run here: {_listed(self.tools.skipped)}. Functions"
                " and custom tools are offered to the model."
            )
        if self._conversation.skipped:
            found.append(
                "Items of the input were skipped whose type says nothing here: "
                f"{_listed(self._conversation.skipped)}."
            )
        return found

    @property
    def seals(self) -> bool:
        """Whether thoughts are told as `encrypted_content` too."""
        return SEALED_THOUGHTS in (self.body.include or ())

    @property
    def wants_summary(self) -> bool:
        """Whether thoughts are told as their summary."""
        reasoning = self.body.reasoning
        return (reasoning.summary or reasoning.generate_summary or "none") != "none"

    def chat(self) -> ChatRequest:
        """The same as chat completions have it. Raises `InvalidRequest`."""
        body = self.body
        kind = with_asks(ChatRequest, body.asking)
        logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
        made: ChatRequest = kind(
            messages=self._conversation.close(),
            max_completion_tokens=body.max_output_tokens,
            logprobs=logprobs or None,
            top_logprobs=body.top_logprobs if logprobs else None,
            tools=self.tools.functions or None,
            tool_choice=self.tools.choice(body.tool_choice),
            response_format=_response_format(body.text.format),
            reasoning_effort=body.reasoning.effort,
            **{name: getattr(body, name) for name in _HOUSE},
            **{
                **body.extras(),
                "cache_hint": body.cache_hint or ("keep" if body.prompt_cache_key else None),
            },
        )
        return made

    @contextmanager
    def in_its_words(self) -> Iterator[None]:
        """Errors about a message or a function name the item or the tool that it was."""
        try:
            yield
        except InvalidRequest as error:
            param = None if error.param is None else self._placed(error.param)
            raise InvalidRequest(self._placed(str(error)), param, error.code) from None

    def _placed(self, text: str) -> str:
        places = {"messages": self._conversation.places, "tools": self.tools.places}

        def place(found: re.Match[str]) -> str:
            listed, index = places[found[1]], int(found[2])
            return listed[index] if index < len(listed) else found[0]

        return re.sub(r"\bmessages\b", "input", _PLACE.sub(place, text), count=1)


def _check(body: ResponseRequest) -> None:
    """Raise `InvalidRequest` for what this server cannot do."""
    refused = (
        ("previous_response_id", "send the whole conversation as input."),
        ("conversation", "send the whole conversation as input."),
        ("prompt", "send its text as instructions and input."),
    )
    for name, advice in refused:
        if getattr(body, name) is not None:
            raise InvalidRequest(
                f"{name}={shown(getattr(body, name))} is not supported. {_NEEDS_STORE}{advice}",
                name,
            )
    if body.background:
        raise InvalidRequest(
            f"background=True is not supported. {_NEEDS_STORE}leave it out, and read the answer as "
            "a stream.",
            "background",
        )
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= 20:
        raise InvalidRequest(
            f"top_logprobs must lie in [0, 20], got {shown(body.top_logprobs)}.", "top_logprobs"
        )


def _response_format(asked: TextFormat) -> ResponseFormat | None:
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return ResponseFormat(type="json_object")
    if asked.schema is None:
        raise InvalidRequest("text.format.schema is required and is missing.", "text.format.schema")
    schema = JsonSchema(name=asked.name or "answer", schema=asked.schema)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
