"""A chat with tools and thoughts: what the template is given, what binds the answer, what splits
it.

`LLM.chat`, `AsyncLLM.chat` and the server make a `ChatPlan` of what a caller asks, by the same
rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.outputs import Reply
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.core.thoughts import ThoughtMarks
from ockham.text.chat_messages import check_messages
from ockham.text.reply.formats import ANSWER_HEADER, END, ESCAPES, START, THOUGHT_HEADER
from ockham.text.reply.schemas import Tools, check_tools
from ockham.text.reply.splitter import CUT, Splitter
from ockham.text.reply.style import Style
from ockham.text.text_stream import places
from ockham.text.tokenizer import Tokenizer

CHOICES = ("none", "auto", "required")


class ToolChoice(msgspec.Struct, frozen=True):
    """What was asked of tools. `offered` are those that the model is told of, `bound` those of
    which the answer must call one."""

    offered: tuple[dict[str, Any], ...] = ()
    bound: tuple[dict[str, Any], ...] = ()
    parallel: bool = True

    @property
    def strict(self) -> bool:
        """Whether calls must follow the schemas wherever they begin."""
        return any(tool["function"].get("strict") is True for tool in self.offered)


def read_tools(tools: Any, choice: Any = None, parallel: bool | None = None) -> ToolChoice:
    """What a caller asks of tools, in OpenAI's fields. Raises InvalidRequest."""
    given = check_tools(tools) if tools is not None else []
    parallel = parallel is not False
    if choice is None:
        choice = "auto"
    if choice == "none" or (not given and choice == "auto"):
        return ToolChoice()
    if not given:
        raise InvalidRequest(
            f"tool_choice={shown(choice)} needs tools, and there are none.", "tool_choice"
        )
    if choice == "auto":
        return ToolChoice(tuple(given), (), parallel)
    if choice == "required":
        return ToolChoice(tuple(given), tuple(given), parallel)
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed(given, choice.get("allowed_tools"), parallel)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or choice.get("type", "function") != "function":
        raise InvalidRequest(
            f"tool_choice must be {', '.join(map(repr, CHOICES))} or "
            '{"type": "function", "function": {"name": ...}}, got '
            f"{shown(choice)}.",
            "tool_choice",
        )
    bound = tuple(tool for tool in given if tool["function"]["name"] == name)
    if not bound:
        raise InvalidRequest(
            f"tool_choice names {shown(name)}, which is not among the tools.", "tool_choice"
        )
    return ToolChoice(tuple(given), bound, False)


def _allowed(given: list[dict[str, Any]], allowed: Any, parallel: bool) -> ToolChoice:
    """OpenAI's `allowed_tools`: some of the tools, which may or must be called."""
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
    names = [
        tool.get("function", tool).get("name")
        for tool in (listed if isinstance(listed, list) else ())
        if isinstance(tool, Mapping) and isinstance(tool.get("function", tool), Mapping)
    ]
    kept = tuple(tool for tool in given if tool["function"]["name"] in names)
    if mode not in ("auto", "required") or not kept or len(kept) != len(names):
        raise InvalidRequest(
            "tool_choice.allowed_tools must have a mode, 'auto' or 'required', and a list of "
            f"tools that are among the tools; got {shown(allowed)}.",
            "tool_choice",
        )
    return ToolChoice(kept, kept if mode == "required" else (), parallel)


def thinking_variables(variables: Mapping[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """What templates go by that can think or not: `enable_thinking`, which is `thinking` in those
    of DeepSeek and Granite, and `reasoning_effort`, unless the caller's own `variables` say so."""
    found = dict(variables or {})
    if effort is not None:
        found.setdefault("enable_thinking", effort != "none")
        if effort != "none":
            found.setdefault("reasoning_effort", effort)
    if "enable_thinking" in found:
        found.setdefault("thinking", found["enable_thinking"])
    return found


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """How one chat is served. Answers are split where `splits`."""

    style: Style
    choice: ToolChoice
    known: Tools
    special: Mapping[str, int]
    """Special tokens as they are spelled, and their ids."""
    whole: bool = False
    """Whether what structured outputs ask holds for the thought as well."""

    @property
    def splits(self) -> bool:
        """Whether an answer has parts."""
        return bool(self.choice.offered) or self.style.thinks

    @property
    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the template shows."""
        spelled = self.style.spelled or self.style.told
        return None if spelled else list(self.choice.offered) or None

    def messages(self, messages: Any) -> Any:
        """The messages that the template shows. Raises InvalidRequest."""
        style = self.style
        if not (style.spelled or style.told):
            return messages
        from ockham.text.reply.spelled import spell, tell

        checked = check_messages(messages)
        if style.told and style.format is not None and style.format.words is not None:
            return tell(checked, self.choice.offered, style.format.words)
        return spell(checked, self.choice.offered)

    def _binds_thought(self, params: SamplingParams) -> bool:
        """Whether the grammar of the output says how its thought goes, and ends."""
        return self.whole and params.structured_outputs is not None

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequest for what cannot be asked at once."""
        if self._binds_thought(params) and params.thinking_token_budget is not None:
            raise InvalidRequest(
                "thinking_token_budget cannot be kept where structured outputs hold for the "
                "thought as well, as the operator chose (--enable-in-reasoning); leave one of the "
                "two out.",
                "thinking_token_budget",
            )
        asked = params.structured_outputs
        if self.choice.bound and asked is not None:
            raise InvalidRequest(
                "tool_choice says what the answer must look like, and so do response_format and "
                "structured_outputs; send one of them.",
                "tool_choice",
            )
        if self.choice.strict and asked is not None and not _is_json(asked):
            raise InvalidRequest(
                "strict tools go together with JSON only; leave out strict, or structured_outputs.",
                "tools",
            )
        if self.choice.bound and self.style.format is None:
            raise InvalidRequest(
                "this model's own response_template does not say how calls are begun; leave out "
                "tool_choice.",
                "tool_choice",
            )

    def skips_special_tokens(self, params: SamplingParams) -> bool:
        """Whether special tokens are left out of the text: not where they are marks."""
        marked = self.splits and any(mark in self.special for mark in self.style.marks)
        return params.skip_special_tokens and not marked

    def params(self, params: SamplingParams, prompt: str) -> SamplingParams:
        """The parameters with what binds the answer to the prompt. Raises InvalidRequest."""
        changes: dict[str, Any] = {}
        thought = None if self._binds_thought(params) else params.thought or self.thought(prompt)
        if thought is not None:
            changes["thought"] = thought
        elif params.thinking_token_budget is not None:
            changes["thinking_token_budget"] = None  # there is nothing that it could end
        if not self.splits:
            return msgspec.structs.replace(params, **changes) if changes else params
        bound = self._bound(params, prompt)
        if bound is not None:
            changes["structured_outputs"] = bound
        if params.skip_special_tokens and not self.skips_special_tokens(params):
            changes["skip_special_tokens"] = False
        return msgspec.structs.replace(params, **changes) if changes else params

    def thought(self, prompt: str) -> ThoughtMarks | None:
        """What stands around the thought of an answer to the prompt, if it may have one."""
        style = self.style
        calls = style.format.open if style.format is not None and self.choice.offered else ()
        if style.format is not None and style.format.channels:
            answer = "" if self.choice.bound else ANSWER_HEADER
            return ThoughtMarks(open=THOUGHT_HEADER, close=END, after=START + answer)
        if style.thought is None or style.has_thought(prompt):
            return None
        return ThoughtMarks(
            open=style.thought.open,
            close=style.thought.close,
            inside=style.in_thought(prompt),
            or_at=calls,
        )

    def splitter(self, params: SamplingParams, prompt: str) -> Splitter:
        """What splits an answer to the prompt that was sampled with the caller's `params`."""
        hidden = self.special if params.skip_special_tokens else ()
        tools = self.known if self.choice.offered else None
        return self.style.splitter(tools, prompt=prompt[-1000:], hidden=hidden)

    def reply(
        self, text: str, finish_reason: str | None, params: SamplingParams, prompt: str
    ) -> Reply:
        """A whole answer, split."""
        return self.split(text, finish_reason, params, prompt)[0]

    def split(
        self, text: str, finish_reason: str | None, params: SamplingParams, prompt: str
    ) -> tuple[Reply, list[tuple[int, int]]]:
        """A whole answer, split, and where its thoughts stand in it, in characters."""
        splitter = self.splitter(params, prompt)
        splitter.feed(text)
        splitter.finish(cut=finish_reason == CUT)
        return _at_most_one(splitter.reply(), self.choice), splitter.thoughts

    def _bound(self, params: SamplingParams, prompt: str) -> StructuredOutputsParams | None:
        """What binds the answer, if that is not what the caller's `params` ask."""
        from ockham.text.reply.grammar import Grammar

        choice, format_ = self.choice, self.style.format
        self.check(params)
        in_thought, asked = self.style.in_thought(prompt), params.structured_outputs
        thought = None if self.style.has_thought(prompt) else self.style.thought
        thinks = thought is not None or (format_ is not None and format_.channels)
        if self.whole and asked is not None:
            thought, thinks = None, False
        grammar = Grammar(format_, thought, self.special.get)
        if asked is not None and not _is_json(asked):
            if not thinks:
                return None
            around = grammar.around(in_thought=in_thought)
            return msgspec.structs.replace(asked, within=around)
        if asked is not None:
            # The schema is of the answer alone: not of the thought before it, nor of calls.
            tools = choice.offered if format_ is not None else ()
            if not (thinks or tools):
                return None
            schema = _json_schema(asked)
            text = grammar.answer(schema, tools, parallel=choice.parallel, in_thought=in_thought)
            return StructuredOutputsParams(grammar=text)
        if format_ is None or not (choice.bound or choice.strict):
            return None
        if choice.bound:
            text = grammar.required(choice.bound, parallel=choice.parallel, in_thought=in_thought)
            return StructuredOutputsParams(grammar=text)
        lazy = grammar.lazy(choice.offered, in_thought=in_thought)
        return None if lazy is None else StructuredOutputsParams(grammar=lazy)


def _is_json(asked: StructuredOutputsParams) -> bool:
    return asked.kind in ("json", "json_object")


def _json_schema(asked: StructuredOutputsParams) -> dict[str, Any]:
    """The schema of an answer in JSON, with how it is written, as the engine has it. Raises
    InvalidRequest for a schema that cannot be kept."""
    from ockham.engine.structured import schema
    from ockham.engine.structured.grammar import WHITE_SPACE

    try:
        schema.check(asked.schema())
    except ValueError as error:
        raise InvalidRequest(
            f"the grammar of the output cannot be compiled: {str(error).rstrip('.')}.",
            "structured_outputs",
        ) from None
    found: dict[str, Any] = json.loads(asked.schema())
    compact = asked.disable_any_whitespace
    found["x-guidance"] = {
        "whitespace_flexible": not compact,
        "whitespace_pattern": None if compact else asked.whitespace_pattern or WHITE_SPACE,
        "json_allowed_escapes": ESCAPES,
        "coerce_one_of": False,
        "lenient": False,
    }
    return found


PLAIN = ChatPlan(Style(), ToolChoice(), Tools(), {})
"""How a text is completed that is no chat."""


def plan_chat(
    tokenizer: Tokenizer,
    choice: ToolChoice,
    chat_template: str | None = None,
    *,
    whole: bool = False,
) -> ChatPlan:
    """How a chat is served by a model with this tokenizer. `whole`: structured outputs hold for
    thoughts as well. May wait for the process that renders
    chats, if a template is met for the first time. Raises InvalidRequest, WorkerError."""
    style = tokenizer.style(chat_template, with_tools=bool(choice.offered))
    return ChatPlan(style, choice, Tools(choice.offered), tokenizer.special_texts, whole)


def _at_most_one(reply: Reply, choice: ToolChoice) -> Reply:
    """The reply without calls beyond the first, where there may be only one."""
    more = len(reply.tool_calls) - 1
    if choice.parallel or more < 1:
        return reply
    return Reply(
        content=reply.content,
        reasoning=reply.reasoning,
        tool_calls=reply.tool_calls[:1],
        warnings=[*reply.warnings, left_out(more)],
    )


def left_out(count: int) -> str:
    """What is said of calls that were made beside the one that was allowed."""
    return f"The model made {count} more calls of tools; parallel_tool_calls=false leaves them out."


def reasoning_tokens(
    tokenizer: Tokenizer | None,
    token_ids: Sequence[int],
    thoughts: Sequence[tuple[int, int]],
    skip_special_tokens: bool,
) -> int:
    """How many tokens of an answer belong to its thoughts, whose places in its text are known."""
    if tokenizer is None or not thoughts:
        return 0
    return sum(
        any(start <= at < end for start, end in thoughts)
        for at in places(tokenizer, token_ids, skip_special_tokens)
    )
