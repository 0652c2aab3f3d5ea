"""What answers look like: OpenAI's objects, with what this server adds to them.

A field that is `UNSET` is left out of the JSON; one that is None is `null`.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ockham.api.server.timings import Course, Progress, Timings
from ockham.core.ledger import Ledger
from ockham.core.outputs import RequestOutput


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a request; `ockham` is its whole bill, once it is finished."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails = msgspec.field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    ockham: Ledger | UnsetType = UNSET


class UsageMeter:
    """Adds up what the prompts of one HTTP request have used, from deltas or from outputs."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self.prompt_tokens = sum(map(len, prompts))
        self.course = Course()
        self.reasoning_tokens: int | None = None
        """Of thoughts; None for what has none."""

    def add(self, output: RequestOutput) -> None:
        self.course.add(output)

    def usage(self, *, final: bool) -> Usage:
        """The figures so far; with the bill if these are the last ones."""
        course = self.course
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=course.completion_tokens,
            total_tokens=self.prompt_tokens + course.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(course.ledger.prompt_tokens_reused),
            completion_tokens_details=UNSET
            if self.reasoning_tokens is None
            else CompletionTokensDetails(self.reasoning_tokens),
            ockham=course.ledger if final else UNSET,
        )


class CompletionLogprobs(msgspec.Struct):
    """One entry a token. The first token of an echoed prompt has no probability."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: Any = UNSET
    token_ids: list[int] | UnsetType = UNSET
    drafted: list[bool] | UnsetType = UNSET
    """Of each token whether it had been drafted; with `token_ids`."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    ockham: dict[str, Any] | UnsetType = UNSET
    """What techniques tell of how they came to this choice, by name; so in chats."""


class Completion(msgspec.Struct, kw_only=True):
    """A completion, or a chunk of one."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET


class TokenLogprob(msgspec.Struct):
    """`bytes` are the token's own, also where `token` shows that it is part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    token_id: int | UnsetType = UNSET
    """Where ids are asked for (`return_token_ids`)."""


class ChosenLogprob(TokenLogprob, kw_only=True):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChosenLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class MessageToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class AssistantMessage(msgspec.Struct):
    """Thoughts go by two names: clients read the one or the other."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    drafted: list[bool] | UnsetType = UNSET
    ockham: dict[str, Any] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    drafted: list[bool] | UnsetType = UNSET
    ockham: dict[str, Any] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
    prompt_logprobs: Any = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: Any = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET


class ModelStatus(msgspec.Struct, kw_only=True):
    """`value` is "unloaded", "loading", "loaded" or "unloading". `message` says why the model could
    not be loaded the last time, if that `failed`. `bytes` is its share of the memory, and
    `expires_at` when it is let go if nobody asks it anything until then."""

    value: str
    failed: bool | UnsetType = UNSET
    message: str | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    expires_at: int | UnsetType = UNSET


class Model(msgspec.Struct, kw_only=True):
    """`root` is the checkpoint behind the name, or the directory of an adapter, whose
    `parent` is the model that it is added to. What a request leaves out is sampled as
    `chat_sampling_defaults` say in chats, and `sampling_defaults` in completions: what they do not
    name is neutral. `eos_token_ids` end an answer. `tasks` are what the model does: "generate",
    "embed", "token_embed", "classify" or "score". What only an engine knows is there once the model
    has been loaded. `status` is there where the server has several models."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "ockham"
    root: str
    parent: str | None = None
    max_model_len: int | UnsetType = UNSET
    sampling_defaults: dict[str, int | float] | UnsetType = UNSET
    chat_sampling_defaults: dict[str, int | float] | UnsetType = UNSET
    eos_token_ids: tuple[int, ...] | UnsetType = UNSET
    tasks: tuple[str, ...] | UnsetType = UNSET
    status: ModelStatus | UnsetType = UNSET


class ModelList(msgspec.Struct):
    """`models` is for Codex alone, which takes no list without it: what it knows of models by
    itself stays, as nothing is said of them there."""

    data: list[Model]
    object: str = "list"
    models: list[None] | UnsetType = UNSET


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str


def now_s() -> int:
    """Unix time in whole seconds, as OpenAI's `created` has it."""
    return int(time.time())
