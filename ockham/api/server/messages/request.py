"""Bodies of `/v1/messages` and `/v1/messages/count_tokens`, and the chats that they ask for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from ockham.api.server.asking import with_asks
from ockham.api.server.errors import HttpError
from ockham.api.server.extras import Extras
from ockham.api.server.fields import ANY
from ockham.api.server.messages.blocks import Block, CacheControl
from ockham.api.server.messages.conversation import Conversation, Message
from ockham.api.server.messages.dialect import THREADS_UNSUPPORTED
from ockham.api.server.protocol import ChatRequest
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.structured_outputs import StructuredOutputsParams

NAMES = {
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
"""Fields of chat completions -> what they are called here."""


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool that the caller runs. Tools that Anthropic's servers run, or whose schema only they
    have, are skipped."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("eager_input_streaming", "defer_loading", "allowed_callers", "input_examples"), (ANY,)
    )

    name: str | None = None
    type: str | None = None
    """`custom`, or left out."""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    """The JSON schema of the arguments."""
    strict: bool | None = None
    """Whether calls are held to the schema by a grammar."""
    cache_control: CacheControl | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the caller runs it, and says what its arguments are."""
        return self.type in (None, "custom") or self.input_schema is not None

    def function(self, where: str) -> dict[str, Any]:
        """The tool as chat completions have it. Raises `InvalidRequest`."""
        for field in ("name", "input_schema"):
            if getattr(self, field) is None:
                raise InvalidRequest(
                    f"{where}.{field} is required and is missing.", f"{where}.{field}"
                )
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.input_schema
        if self.strict is not None:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class Choice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether tools may or must be called. `any`: one of them, `tool`: the one called `name`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None
    """Whether there is one call at most."""

    def for_chat(self) -> str | dict[str, Any]:
        """The same in the words of chat completions. Raises `InvalidRequest`."""
        if self.type != "tool":
            return "required" if self.type == "any" else self.type
        if self.name is None:
            raise InvalidRequest("tool_choice.name is required and is missing.", "tool_choice.name")
        return {"type": "function", "function": {"name": self.name}}


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether the model thinks before it answers. `adaptive` and `between_tools` leave it to the
    model's template, as leaving `thinking` out does."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    """Tokens that a thought may have where it is `enabled`; then it is closed."""
    display: Literal["summarized", "omitted"] | None = None
    """`omitted`: blocks of thoughts come without their texts."""


class Format(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The JSON schema that the answer follows."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer is like. `effort` goes to the chat template as `reasoning_effort`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`user_id` is a label: it says whose turn the request takes where nothing else does."""

    user_id: str | None = None


class MessagesChat(ChatRequest, kw_only=True):
    """The chat that a body asks for, and what only this protocol knows of it."""

    prefill: str = ""
    """The text that the answer goes on from."""
    skipped: list[str] = []
    """What was left out of the body, for whoever must be told."""
    stays_s: int = 0
    """Seconds that system prompt and tools are to stay in the cache."""
    marks_messages: bool = False
    """Whether a message is marked to stay in the cache."""


class MessagesBody(Extras, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages`, and `/v1/messages/count_tokens`, which counts the prompt of the same."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
        "inference_geo": (ANY,),
        "diagnostics": (ANY,),
        "betas": (ANY,),
        "mcp_servers": ([],),
        "container": (),
    }
    plain: ClassVar[bool] = True
    """Whether what Claude Code changes in every prompt is left out."""

    model: str | None = None
    messages: list[Message]
    max_tokens: int | None = None
    """At most so many tokens are generated, and no more than fit the context. 0: the prompt is
    computed, so that it is in the cache, and nothing is generated."""
    system: str | list[Block] | None = None
    """The system prompt."""
    stream: bool | None = None
    """Whether the answer comes piece by piece, as server-sent events."""
    tools: list[Tool] | None = None
    """The tools that the model may call."""
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    stop_sequences: list[str] | None = None
    """Texts that end the answer; they are no part of it."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    """The older name of `output_config.format`."""
    cache_control: CacheControl | None = None
    """The same as one at the last block."""
    thread: dict[str, Any] | None = None
    """Refused in such a way that the official clients' tool runners go on without it."""

    # What is not Anthropic's, beside `Extras`.
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None

    def chat(self) -> MessagesChat:
        """The same as chat completions have it."""
        if self.thread is not None:
            raise HttpError(
                400,
                "thread is not supported: this server keeps no conversations. Send the whole "
                "conversation without thread.",
                param="thread",
                code=THREADS_UNSUPPORTED,
            )
        if self.max_tokens == 0 and self.stream:
            raise InvalidRequest("max_tokens=0 does not go with stream=true.", "max_tokens")
        conversation = Conversation(plain=self.plain)
        conversation.read_system(self.system)
        conversation.read_messages(self.messages)
        prefill, skipped = conversation.prefill, conversation.skipped
        tools = self._tools(skipped)
        variables, effort = self._thinking(prefill)
        marks = self._marks_messages()
        kind: type[MessagesChat] = with_asks(MessagesChat, self.asking)
        return kind(
            model=self.model,
            messages=conversation.messages,
            max_tokens=1 if self.max_tokens == 0 else self.max_tokens,
            stream=self.stream,
            tools=tools or None,
            tool_choice=self.tool_choice.for_chat() if self.tool_choice else None,
            parallel_tool_calls=self._parallel(),
            stop=self.stop_sequences or None,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            user=self.metadata.user_id if self.metadata else None,
            reasoning_effort=effort,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            prefill=prefill,
            skipped=skipped,
            stays_s=self._stays_s(),
            marks_messages=marks,
            **{
                **self.extras(),
                "structured_outputs": self._structured_outputs(),
                "chat_template_kwargs": variables,
                "thinking_token_budget": self._budget(),
                "cache_hint": self.cache_hint or ("keep" if marks else None),
                # A stream begins with what of the prompt was cached.
                "return_progress": self.stream,
            },
        )

    @property
    def shows_thoughts(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"

    def _tools(self, skipped: list[str]) -> list[dict[str, Any]]:
        made = []
        for index, tool in enumerate(self.tools or ()):
            if tool.is_ours:
                made.append(tool.function(f"tools[{index}]"))
            else:
                skipped.append(f"tools[{index}] ({shown(tool.type)})")
        return made

    def _parallel(self) -> bool | None:
        choice = self.tool_choice
        return False if choice is not None and choice.disable_parallel_tool_use else None

    def _thinking(self, prefill: str) -> tuple[dict[str, Any] | None, Any]:
        """Variables of the chat template, and an effort."""
        variables = dict(self.chat_template_kwargs or {})
        kind = self.thinking.type if self.thinking is not None else None
        if kind == "disabled" or (prefill and kind is None):
            return variables or None, "none"
        if kind == "enabled":
            variables.setdefault("enable_thinking", True)
        effort = self.output_config.effort if self.output_config else None
        if effort is not None:
            # Templates know three levels.
            variables.setdefault(
                "reasoning_effort", "high" if effort in ("xhigh", "max") else effort
            )
        return variables or None, None

    def _budget(self) -> int | None:
        """The most tokens of a thought. Raises `InvalidRequest`."""
        if self.thinking is None or self.thinking.type != "enabled":
            return self.thinking_token_budget
        budget = self.thinking.budget_tokens
        if budget is not None and budget < 1:
            raise InvalidRequest(
                f"thinking.budget_tokens must be at least 1, got {shown(budget)}.",
                "thinking.budget_tokens",
            )
        return self.thinking_token_budget if budget is None else budget

    def _structured_outputs(self) -> StructuredOutputsParams | None:
        """What the answer must look like. Raises `InvalidRequest`."""
        asked = self.output_config.format if self.output_config else None
        field = "output_config.format"
        if asked is None and self.output_format is not None:
            asked, field = self.output_format, "output_format"
        if asked is None:
            return self.structured_outputs
        if self.structured_outputs is not None:
            raise InvalidRequest(
                f"{field} and structured_outputs both say what the answer must look like; send one "
                "of them.",
                field,
            )
        try:
            return StructuredOutputsParams(json=asked.schema)
        except InvalidRequest as error:
            said = str(error).replace("structured_outputs.json", f"{field}.schema")
            raise InvalidRequest(said.replace("structured_outputs", field), field) from None

    def _stays_s(self) -> int:
        """For how long system prompt and tools are to be kept, by their own marks."""
        system = self.system if isinstance(self.system, list) else []
        marks = (each.cache_control for each in (*system, *(self.tools or ())))
        return max((mark.seconds for mark in marks if mark is not None), default=0)

    def _marks_messages(self) -> bool:
        return self.cache_control is not None or any(
            block.cache_control is not None
            for message in self.messages
            if isinstance(message.content, list)
            for block in message.content
        )


class VerbatimBody(MessagesBody, kw_only=True, forbid_unknown_fields=True):
    """The same where prompts are taken word by word."""

    plain: ClassVar[bool] = False
