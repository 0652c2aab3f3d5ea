"""What requests may hold: OpenAI's fields, vLLM's extras, and nothing else.

What a JSON object may hold beside the fields that are declared here: see `fields`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import msgspec

from ockham.api.server.asking import TakesAsks
from ockham.api.server.fields import NEUTRAL, NEUTRAL_IN_MESSAGES
from ockham.api.server.response_format import ResponseFormat
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import asked_by
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.thoughts import RepetitionDetectionParams
from ockham.text.marking import ReuseParams

MOST_VARIABLES = 1000
"""Most names that a request may give to the chat template."""

_COPIED = (
    "repetition_detection",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "seed",
    "n",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)


_THOUGHT = ("thinking_token_budget", "thinking_closing_text")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_obfuscation` pads OpenAI's chunks against an observer of sizes; not done here."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(TakesAsks, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions have in common. Techniques add fields: see `asking`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL
    has_synonyms: ClassVar[bool] = True
    copied: ClassVar[tuple[str, ...]] = _COPIED
    """The fields that `SamplingParams` has under the same name."""

    model: str | None = None
    n: int | None = None
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    include_stop_str_in_output: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsParams | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    """Whoever sends another one shares no state with this request, nor sees when it is reused."""
    cache_hint: Literal["keep", "discard"] | None = None
    """Whether what this request leaves in the cache will be used again. Wrong, it costs time."""

    reuse: str | None = None
    """The approximate reuse that this request allows: see `ReuseParams`."""

    search: str | dict[str, Any] | None = None
    """How the answer is searched for: the name of a search, or an object with it as `method` and
    its settings beside it."""

    priority: int | None = None
    """As in vLLM, the lower goes first; here among the requests of the same tenant."""

    # Labels: they say who asks, and change no answer. `user` may be a tenant: see `Caller.tenant`.
    user: str | None = None
    metadata: dict[str, str] | None = None

    def check(self) -> None:
        """Raise `InvalidRequest` for what is not supported, or contradicts itself."""
        self.check_best_of()
        if self.priority is not None and not -(2**31) <= self.priority < 2**31:
            raise InvalidRequest(
                f"priority must lie in [-2**31, 2**31), got {shown(self.priority)}.", "priority"
            )
        if self.stream_options is not None:
            if not self.stream and any(msgspec.structs.astuple(self.stream_options)):
                raise InvalidRequest(
                    "stream_options is only allowed together with stream=true.", "stream_options"
                )
            if self.stream_options.include_obfuscation:
                raise InvalidRequest(
                    "stream_options.include_obfuscation=True is not supported; leave it out.",
                    "stream_options",
                )

    def check_best_of(self) -> None:
        """Completions can be the best of more; other answers are all that were made."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest(
                f"best_of={shown(self.best_of)} is only supported where it equals n ({self.n or 1}"
                "), except by /v1/completions; leave it out.",
                "best_of",
            )

    def reuse_params(self) -> ReuseParams | None:
        """What may be reused approximately. Raises `InvalidRequest`."""
        settings = self.asks_beside("reuse")
        return None if self.reuse is None else ReuseParams(reuse=self.reuse, **settings)

    @property
    def label(self) -> str | None:
        """The end user, as whoever sends the request names them."""
        return self.user

    @property
    def length_field(self) -> str:
        """The field that says how many tokens may be generated."""
        return "max_tokens"

    @property
    def wants_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling_params(
        self,
        defaults: dict[str, Any],
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
        names: Mapping[str, str] | None = None,
    ) -> SamplingParams:
        """The engine's parameters: what is given here over the model's own `defaults`.

        `names` are parameters that the caller knows by the name of another field. Raises
        `InvalidRequest` that names the field.
        """
        given = {name: getattr(self, name) for name in self.copied}
        chosen = {name: value for name, value in given.items() if value is not None}
        structured = self._structured_outputs()
        try:
            return SamplingParams(
                **{
                    **defaults,
                    **chosen,
                    **self.asks_by_name(),
                    "search": self.search,
                    "max_tokens": max_tokens,
                    "logprobs": logprobs,
                    "prompt_logprobs": prompt_logprobs,
                    "structured_outputs": structured,
                }
            )
        except InvalidRequest as error:
            name = (names or {}).get(error.param or "")
            if name is None:
                raise
            raise InvalidRequest(str(error).replace(str(error.param), name, 1), name) from None

    def _structured_outputs(self) -> StructuredOutputsParams | None:
        """What the answer must look like, whichever way it was said."""
        asked = self.response_format and self.response_format.structured_outputs()
        if asked is not None and self.structured_outputs is not None:
            raise InvalidRequest(
                "response_format and structured_outputs both say what the answer must look like; "
                "send one of them.",
                "response_format",
            )
        return asked or self.structured_outputs


class CompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    """The text behind what is generated, for models that can fill in."""

    def check(self) -> None:
        GenerationRequest.check(self)
        if self.echo and self.prompt_logprobs is not None:
            raise InvalidRequest(
                "prompt_logprobs is not allowed together with echo, which returns them as "
                "logprobs; leave one of them out.",
                "prompt_logprobs",
            )
        if self.suffix and self.reuse is not None:
            raise InvalidRequest(
                "reuse finds chunks in texts that are completed at their end; leave out suffix.",
                "suffix",
            )

    def check_best_of(self) -> None:
        """`best_of` completions are made of each prompt, and the `n` likeliest are the answer."""
        if self.best_of is None:
            return
        if self.best_of < (self.n or 1):
            raise InvalidRequest(
                f"best_of={shown(self.best_of)} must be at least n ({self.n or 1}).", "best_of"
            )
        asked = [found for name in self.asks_by_name() if (found := asked_by(name)) is not None]
        if self.search is not None or any(key.startswith("search/") for key, _ in asked):
            raise InvalidRequest(
                "best_of says how many completions are made, and so does a search; leave one of "
                "them out.",
                "best_of",
            )
        if self.stream and self.best_of != (self.n or 1):
            raise InvalidRequest(
                "best_of is only known at the end: it cannot be streamed; leave out stream, or "
                "best_of.",
                "best_of",
            )

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one entry each. Raises `InvalidRequest` if their kinds are mixed."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidRequest("prompt must not be an empty list.", "prompt")
        kinds = set(map(type, self.prompt))
        if kinds == {int}:
            return [cast(list[int], self.prompt)]
        if kinds != {str} and kinds != {list}:
            raise InvalidRequest(
                "prompt must be a string, a list of strings, a list of token ids, or a list of "
                "lists of token ids; these cannot be mixed.",
                "prompt",
            )
        return cast(list[str | list[int]], self.prompt)


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message. Answers of this API, and of others, can be sent back as they came."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL_IN_MESSAGES

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    # What a model thought before is for the template to show, or to leave out.
    reasoning_content: Any = None
    reasoning: Any = None

    def check(self, where: str) -> None:
        """Raise `InvalidRequest` for a role that no template knows."""
        roles = ("system", "developer", "user", "assistant", "tool")
        if self.role not in roles:
            raise InvalidRequest(
                f"{where}.role must be one of {', '.join(roles)}, got {shown(self.role)}.",
                f"{where}.role",
            )

    @property
    def text(self) -> str:
        """Its content, if that is all text; else an empty text."""
        if not isinstance(self.content, list):
            return self.content or ""
        texts = [part.get("text") for part in self.content if part.get("type") == "text"]
        whole = len(texts) == len(self.content) and all(isinstance(each, str) for each in texts)
        return "".join(map(str, texts)) if whole else ""

    def arguments(self) -> Iterator[str]:
        """The arguments of its tool calls, where these are text."""
        for call in self.tool_calls or ():
            function = call.get("function")
            text = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(text, str):
                yield text

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it. OpenAI's newer word for system is developer,
        which no template knows."""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
        }
        for name in ("name", "tool_calls", "tool_call_id"):
            if getattr(self, name):
                message[name] = getattr(self, name)
        thought = self.reasoning_content or self.reasoning
        if self.role == "assistant" and isinstance(thought, str):
            message |= {"reasoning_content": thought, "thinking": thought}
        return message


def template_variables(variables: dict[str, Any] | None) -> dict[str, Any]:
    """What a caller may add to the chat template's own variables. Raises `InvalidRequest`."""
    if len(variables or {}) > MOST_VARIABLES:
        raise InvalidRequest(
            f"chat_template_kwargs has {len(variables or {})} entries, at most {MOST_VARIABLES}.",
            "chat_template_kwargs",
        )
    for name in ("messages", "tools", "add_generation_prompt", "chat_template", "self"):
        if name in (variables or {}):
            raise InvalidRequest(
                f"chat_template_kwargs must not hold {name}.", "chat_template_kwargs"
            )
    return variables or {}


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""How long a model should think; `none`: not at all. What a model makes of it is its template's."""


class ChatRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    copied: ClassVar[tuple[str, ...]] = (*_COPIED, *_THOUGHT)

    messages: list[ChatMessage]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Whether the answer goes on from the last message, the assistant's, which it does not
    repeat. A thought is not begun then, unless something asks for it."""
    prefix_token_ids: list[int] | None = None
    """The answer begins with these tokens, which are not generated: it goes on from another one's
    beginning, whose state is reused. They are shown as its beginning, and count as prompt."""
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: int | None = None
    thinking_closing_text: str | None = None

    service_tier: Literal["auto", "default"] | None = None
    # Labels.
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def label(self) -> str | None:
        return self.user or self.safety_identifier

    @property
    def length_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def check(self) -> None:
        GenerationRequest.check(self)
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")
        if self.continue_final_message:
            self._check_continued()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed with logprobs=true.", "top_logprobs")
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise InvalidRequest(
                f"max_tokens ({self.max_tokens}) is the old name of max_completion_tokens "
                f"({self.max_completion_tokens}); send one of them.",
                "max_tokens",
            )

    def _check_continued(self) -> None:
        if self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt contradict each other; send one "
                "of them.",
                "continue_final_message",
            )
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or last.tool_calls or not last.text:
            raise InvalidRequest(
                "continue_final_message goes on from a last message of the assistant that holds "
                "text and no calls; there is none.",
                "continue_final_message",
            )

    def to_be_continued(self) -> tuple[ChatRequest, str]:
        """The chat before the message that the answer goes on from, and that message's text."""
        variables, effort = self.chat_template_kwargs, self.reasoning_effort
        if "enable_thinking" not in (variables or {}):
            effort = effort or "none"
        before = msgspec.structs.replace(
            self,
            messages=self.messages[:-1],
            continue_final_message=None,
            add_generation_prompt=None,
            reasoning_effort=effort,
        )
        return before, self.messages[-1].text


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: a prompt, or the messages of a chat."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL
    has_synonyms: ClassVar[bool] = True

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: Effort | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Send either prompt or messages, and not both.", "prompt")
        for index, message in enumerate(self.messages or []):
            message.check(f"messages[{index}]")


class ControlRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions/{id}/control`; without the id in the path it is in the body."""

    action: Literal["reasoning_end"]
    id: str | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None
