"""What requests may hold: OpenAI's fields, vLLM's extras, and nothing else.

A field that is not declared here is refused with a 400 that names it. Fields of OpenAI's API that
have no effect here are accepted at the values that ask for nothing (`NEUTRAL`). `null` means the
same as leaving a field out, as in OpenAI's API.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ockham.api.server.errors import describe
from ockham.api.server.response_format import ResponseFormat
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.model.marking import NATURAL_BOUNDARY, ReuseParams

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "suffix": (None, ""),
}
"""Field of OpenAI's API that does nothing here -> the values at which it asks for nothing."""

MOST_VARIABLES = 1000
"""Most names that a request may give to the chat template."""

_COPIED = (
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
    "superposed",
)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_obfuscation` pads OpenAI's chunks against an observer of sizes; not done here."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions have in common."""

    model: str | None = None
    n: int | None = None
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
    include_stop_str_in_output: bool | None = None
    superposed: bool | None = None
    """All n choices from one pass of the model, approximately, at temperature 0."""
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
    """The approximate reuse that this request allows; see `ReuseParams` for the fields below."""
    recompute_fraction: float | None = None
    chunk_separator: str | None = None

    # Labels: they say who asks, and change nothing.
    user: str | None = None
    metadata: dict[str, str] | None = None

    def check(self) -> None:
        """Raise `InvalidRequest` for what is not supported, or contradicts itself."""
        for name, allowed in NEUTRAL.items():
            value = getattr(self, name, None)
            if value not in allowed:
                neutral = " or ".join(describe(v) for v in allowed if v is not None)
                raise InvalidRequest(
                    f"{name}={describe(value)} is not supported; leave it out"
                    + (f", or send {neutral}." if neutral else "."),
                    name,
                )
        if self.stream_options is not None:
            if not self.stream:
                raise InvalidRequest(
                    "stream_options is only allowed together with stream=true.", "stream_options"
                )
            if self.stream_options.include_obfuscation:
                raise InvalidRequest(
                    "stream_options.include_obfuscation=True is not supported; leave it out.",
                    "stream_options",
                )

    def reuse_params(self) -> ReuseParams | None:
        """What may be reused approximately. Raises `InvalidRequest`."""
        if self.reuse is None:
            for name in ("recompute_fraction", "chunk_separator"):
                if getattr(self, name) is not None:
                    raise InvalidRequest(f"{name} needs reuse='chunk' beside it.", name)
            return None
        separator = NATURAL_BOUNDARY if self.chunk_separator is None else self.chunk_separator
        return ReuseParams(
            reuse=self.reuse,
            recompute_fraction=self.recompute_fraction,
            chunk_separator=separator,
        )

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
    ) -> SamplingParams:
        """The engine's parameters: what is given here over the model's own `defaults`.

        Raises `InvalidRequest` that names the field.
        """
        given = {name: getattr(self, name) for name in _COPIED}
        chosen = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(
            **{
                **defaults,
                **chosen,
                "max_tokens": max_tokens,
                "logprobs": logprobs,
                "prompt_logprobs": prompt_logprobs,
                "structured_outputs": self._structured_outputs(),
            }
        )

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
    best_of: int | None = None
    suffix: Any = None

    def check(self) -> None:
        GenerationRequest.check(self)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest(
                f"best_of={self.best_of} is only supported where it equals n ({self.n or 1}): no "
                "search is made; leave it out.",
                "best_of",
            )
        if self.echo and self.prompt_logprobs is not None:
            raise InvalidRequest(
                "prompt_logprobs is not allowed together with echo, which returns them as "
                "logprobs; leave one of them out.",
                "prompt_logprobs",
            )

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one entry each. Raises `InvalidRequest` if their kinds are mixed."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidRequest("prompt must not be an empty list.", "prompt")
        if all(isinstance(entry, int) for entry in self.prompt):
            return [[entry for entry in self.prompt if isinstance(entry, int)]]
        prompts = [entry for entry in self.prompt if not isinstance(entry, int)]
        if len(prompts) < len(self.prompt) or len({type(entry) for entry in prompts}) > 1:
            raise InvalidRequest(
                "prompt must be a string, a list of strings, a list of token ids, or a list of "
                "lists of token ids; these cannot be mixed.",
                "prompt",
            )
        return prompts


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message. Answers of this API, and of OpenAI's, can be sent back as they came."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Any = None
    function_call: Any = None
    annotations: list[Any] | None = None

    def check(self, where: str) -> None:
        """Raise `InvalidRequest` for a role or a field that no template could show."""
        roles = ("system", "developer", "user", "assistant", "tool")
        if self.role not in roles:
            raise InvalidRequest(
                f"{where}.role must be one of {', '.join(roles)}, got {describe(self.role)}.",
                f"{where}.role",
            )
        for name in ("refusal", "audio", "function_call", "annotations"):
            if getattr(self, name):
                raise InvalidRequest(
                    f"{where}.{name} is not supported; leave it out.", f"{where}.{name}"
                )

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


class ChatRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    store: Any = None
    service_tier: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    # Labels, and a permission that nothing can use while there are no tools.
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def check(self) -> None:
        GenerationRequest.check(self)
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")
        if self.top_logprobs is not None and not self.logprobs:
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


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Send either prompt or messages, and not both.", "prompt")
        for index, message in enumerate(self.messages or []):
            message.check(f"messages[{index}]")


class CacheRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/cache`. `cache_salt`: the tenant whose texts are to be shown."""

    cache_salt: str | None = None
    most_nodes: int | None = None


class PinRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/cache/pin`: a prompt, or the messages that chats begin with."""

    name: str | None = None
    prompt: str | list[int] | None = None
    messages: list[ChatMessage] | None = None
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
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=False,
        )


class UnpinRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/cache/unpin`."""

    name: str


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None
