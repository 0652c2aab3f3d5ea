"""Rendering a chat to one prompt with a checkpoint's Jinja template.

The conventions are those of Hugging Face's `apply_chat_template`, which templates are written for:
a sandbox, `trim_blocks` and `lstrip_blocks`, loop controls, `tojson` without HTML escapes, and the
functions `raise_exception` and `strftime_now`. Nothing here knows about tokens.

A template may loop without end or ask for gigabytes, and nothing here would stop it: prompts are
rendered in a process that may be killed (`chat_renderer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from ockham.core.errors import InvalidRequest
from ockham.text.chat_messages import (
    Form,
    check_messages,
    forms_for,
    in_form,
    results_within,
    text_of,
)

if TYPE_CHECKING:
    from types import TracebackType

    from jinja2 import Template

MAX_TEMPLATE_CHARACTERS = 1 << 20

Seen = Literal["shown", "lost", "failed"]
"""What became of a text that a template was given: it stands in the prompt as it is, it does not,
or the template failed."""

_MOST_KINDS = 256
"""Most roles of which a template remembers what it shows."""
_WITHIN = "tool_responses"
"""What templates name that show the answers of tools within the message that called them."""
_ORDINARY_ROLES = ("system", "user", "assistant", "tool")

_MARK, _SECOND, _KEY = "Mkq7vxA", "Mkq7vxB", "mkq7vxkey"
"""Texts, and the key of a part, that no template holds by itself."""
_CALL: dict[str, Any] = {
    "id": "Zq3kT9xWb",  # nine letters, as Mistral's templates demand
    "type": "function",
    "function": {"name": "Mkq7vxF", "arguments": {"a": 1}},
}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "Mkq7vxF",
        "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


_NO_TEXT = [{"type": "text", "text": ""}]
_NOTHING: tuple[dict[str, Any], ...] = (
    {},
    {"content": None},
    {"content": ""},
    {"content": _NO_TEXT},
)
"""How a message may say nothing: as transformers 5 shows null content to a template, as version 4
did, and as templates need it that add strings, or look for parts."""


class TemplateFailed(InvalidRequest):
    """A template that is broken, or that failed on the messages that it was given."""


class TemplateRefused(TemplateFailed):
    """What a template says of messages that it was not made for."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is wrong with a template, if anything is, and what it leaves out."""

    fault: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """Whether a template shows tools, and what it makes of a call of `name` with the argument `key`
    that is `value`: the assistant's message without what stands around every one."""

    shows_tools: bool
    text: str | None = None
    name: str = _CALL["function"]["name"]
    key: str = "mkq7vxarg"
    value: str = "418093"


class ChatTemplate:
    """A template, and what it shows of messages, which is found by rendering marks with it.

    `whose` begins the sentences about it: "The checkpoint's chat template". `variables` are names
    that the template may always use (`bos_token`). `with_tools`: it is rendered with tools.
    `strict`: messages whose text it would leave out are refused.
    """

    def __init__(
        self,
        source: str,
        whose: str,
        variables: Mapping[str, Any],
        *,
        with_tools: bool = False,
        strict: bool = True,
    ) -> None:
        self._source = source
        self._whose = whose
        self._strict = strict
        self._variables = variables
        self._tools = [_TOOL] if with_tools else None
        self._seen: dict[tuple[str, Form], Seen] = {}
        self._no_content: dict[bool, dict[str, Any]] = {}
        self._both: bool | None = None

    def render(
        self,
        messages: Any,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The prompt for `messages`, whose content gets the form that the template shows.

        `now` is what `strftime_now` tells. Raises InvalidRequest if the messages are malformed or
        hold a text that the template does not show, and TemplateFailed.
        """
        shaped = self._shape(check_messages(messages))
        given = {**self._variables, **(variables or {})}
        return self._run(shaped, tools, add_generation_prompt, given, now)

    def report(self) -> Report:
        """Whether the template is of use at all, and what of a conversation it does not show."""
        try:
            self._template()
            fault = self._fault()
        except TemplateFailed as error:
            fault = str(error)
        if fault is not None:
            return Report(fault)
        notes = [
            f"{self._whose} does not show the content of {role} messages; they are refused."
            for role in _ORDINARY_ROLES
            if self._form(role, _MARK) is None
        ]
        prompt = self._try(self._with_call(self._nothing(with_result=True), with_result=True))
        if prompt is not None and _CALL["function"]["name"] not in prompt:
            notes.append(f"{self._whose} does not show which tools the assistant called.")
        return Report(None, tuple(notes))

    def called(self) -> Called:
        """How it writes tools and calls."""
        self._tools = [_TOOL]
        asked = [{"role": "user", "content": in_form("x", self._form("user", "x") or "string")}]
        offered = self._try(asked)
        if offered is None or _TOOL["function"]["name"] not in offered:
            return Called(False)
        found = Called(True)
        form = self._form("assistant", _MARK) or "string"
        said = self._try([*asked, {"role": "assistant", "content": in_form(_MARK, form)}])
        function = {"name": found.name, "arguments": {found.key: int(found.value)}}
        call = {**_CALL, "function": function}
        written = self._try(
            [*asked, {"role": "assistant", **self._nothing(False), "tool_calls": [call]}]
        )
        if said is None or written is None or found.name not in written[len(offered) - 1 :]:
            return found
        before, _, after = said.partition(_MARK)
        start = 0
        while written[: start + 1] == before[: start + 1] and start < len(before):
            start += 1
        while after and not written.endswith(after):
            after = after[1:]
        return replace(found, text=written[start : len(written) - len(after)])

    def _fault(self) -> str | None:
        """Why the template fails, if it does so on every conversation that it does not refuse."""
        faults = []
        for kind in ("user", "system", "assistant"):
            for around in ("x", [{"type": "text", "text": "x"}]):
                try:
                    self._run(_conversation(kind, around, around))
                except TemplateRefused:  # it may want a system prompt, or want none
                    return None
                except TemplateFailed as error:
                    faults.append(str(error))
                else:
                    return None
        return faults[0]

    # -- the form of content -------------------------------------------------------------------

    def _shape(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with their content in a form that the template shows."""
        for index, message in enumerate(messages):
            content, role = message["content"], message["role"]
            thought = message.get("thinking")
            if content and thought and message.get("tool_calls") and not self._takes_both():
                message["thinking"] = f"{thought}\n\n{text_of(content)}"
                content = None
            if content is None:
                del message["content"]
                message |= self._nothing(_has_result(messages, index))
                continue
            kind = "later system" if role == "system" and index else role
            form = self._form(kind, content)
            if form is None and not self._strict:
                form = "string"
            if form is None:
                raise InvalidRequest(
                    f"{self._whose} does not show the content of {kind} messages, so that the "
                    f"model would not see messages[{index}]; leave it out, or give its text to a "
                    "message of the user.",
                    "messages",
                )
            message["content"] = in_form(content, form)
        return messages

    def _takes_both(self) -> bool:
        """Whether it shows calls beside which there are a thought and content; gpt-oss's refuses
        them, and shows either as a thought."""
        if self._both is None:
            [asked, called] = self._with_call(self._nothing(False), with_result=False)
            form = self._form("assistant", "x") or "string"
            thinking = {**called, "thinking": "x"}
            both = [asked, {**thinking, "content": in_form("x", form)}]
            self._both = self._try(both) is not None or self._try([asked, thinking]) is None
        return self._both

    def _form(self, kind: str, content: Any) -> Form | None:
        """The first form of `content` that is shown in messages of a kind; None if its text would
        be lost in every one."""
        forms = forms_for(content)
        seen: list[Seen] = [self._look(kind, form) for form in forms]
        if "shown" in seen:
            return forms[seen.index("shown")]
        return forms[seen.index("failed")] if "failed" in seen else None  # it says so itself

    def _look(self, kind: str, form: Form) -> Seen:
        key = (kind, form)
        found = self._seen.get(key)
        if found is None:
            found = self._mark(kind, form)
            if len(self._seen) >= _MOST_KINDS:
                self._seen.clear()
            self._seen[key] = found
        return found

    def _mark(self, kind: str, form: Form) -> Seen:
        """What becomes of marks in the content of a message of a kind, among others whose content
        has the same form, or else is text."""
        marked: Any = _MARK
        marks = [_MARK]
        if form != "string":
            marked = [{"type": "text", "text": _MARK, _KEY: ""}]
        if form == "parts":
            marks.append(_SECOND)
            marked.append({"type": "text", "text": _SECOND, _KEY: ""})
        best: Seen = "failed"
        for around in ("x", [{"type": "text", "text": "x"}])[:: 1 if form == "string" else -1]:
            prompt = self._try(_conversation(kind, marked, around))
            if prompt is None:
                continue
            # A part that is written out whole, as JSON, is not shown as text.
            found = prompt.lower()
            if all(mark.lower() in found for mark in marks) and _KEY not in found:
                return "shown"
            best = "lost"
        return best

    def _nothing(self, with_result: bool) -> dict[str, Any]:
        """What stands for null content beside tool calls: the first of `_NOTHING` with which the
        template shows the call, if it ever does, and not the word None."""
        if with_result not in self._no_content:
            self._no_content[with_result] = self._find_nothing(with_result)
        return self._no_content[with_result]

    def _find_nothing(self, with_result: bool) -> dict[str, Any]:
        prompts = [self._try(self._with_call(nothing, with_result)) for nothing in _NOTHING]
        rendered = [(p, nothing) for p, nothing in zip(prompts, _NOTHING, strict=True) if p]
        if not rendered:
            return {"content": ""}
        least = min(prompt.count("None") for prompt, _ in rendered)
        clean = [(p, nothing) for p, nothing in rendered if p.count("None") == least]
        showing = [(p, nothing) for p, nothing in clean if _CALL["function"]["name"] in p]
        return (showing or clean)[0][1]

    def _with_call(self, nothing: dict[str, Any], with_result: bool) -> list[dict[str, Any]]:
        form = self._form("user", "x") or "string"
        asked = {"role": "user", "content": in_form("x", form)}
        called = {"role": "assistant", **nothing, "tool_calls": [_CALL]}
        result = _result(in_form("x", self._form("tool", "x") or "string"))
        # What names the tool is the call alone.
        return [asked, called, {**result, "name": "x"}] if with_result else [asked, called]

    # -- rendering -----------------------------------------------------------------------------

    def _try(self, messages: list[dict[str, Any]]) -> str | None:
        try:
            return self._run(messages, self._tools)
        except TemplateFailed:
            return None

    def _run(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        if _WITHIN in self._source:
            messages = results_within(messages)
        given = {
            "strftime_now": (now or datetime.now()).strftime,
            **(self._variables if variables is None else variables),
            "messages": messages,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        given.setdefault("documents", None)
        template = self._template()
        try:
            return template.render(given)
        except _Refused as error:
            reason = str(error).rstrip(".")
            raise TemplateRefused(
                f"{self._whose} refuses these messages: {reason}.", "messages"
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever Python can
            reason = f"{type(error).__name__}: {error}".rstrip(".")
            if isinstance(error, RecursionError):
                reason = "it calls itself without end, or the messages are nested too deeply"
            raise TemplateFailed(
                f"{self._whose} failed ({_line(error.__traceback__)}{reason}).",
                "messages",
            ) from None

    def _template(self) -> Template:
        from jinja2 import TemplateSyntaxError

        if len(self._source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateFailed(
                f"{self._whose} has {len(self._source)} characters, at most "
                f"{MAX_TEMPLATE_CHARACTERS} are taken.",
                "messages",
            )
        try:
            return _compile(self._source)
        except TemplateSyntaxError as error:
            raise TemplateFailed(
                f"{self._whose} is not valid Jinja (line {error.lineno}: {error.message}).",
                "messages",
            ) from None
        except RecursionError:
            raise TemplateFailed(f"{self._whose} is nested too deeply.", "messages") from None
        except SyntaxError as error:  # of the Python that it is compiled to: too many nested loops
            raise TemplateFailed(
                f"{self._whose} cannot be compiled ({error.msg}).", "messages"
            ) from None


def _conversation(kind: str, marked: Any, around: Any) -> list[dict[str, Any]]:
    """A conversation in which a message of a kind has the content `marked`."""
    asked, said = {"role": "user", "content": around}, {"role": "assistant", "content": around}
    if kind == "user":
        return [{"role": "user", "content": marked}]
    if kind == "system":
        return [{"role": "system", "content": marked}, asked]
    if kind == "later system":
        return [asked, said, {"role": "system", "content": marked}, asked]
    if kind == "assistant":
        return [asked, {"role": "assistant", "content": marked}, asked]
    if kind == "tool":
        nothing = "" if isinstance(around, str) else _NO_TEXT
        called = {"role": "assistant", "content": nothing, "tool_calls": [_CALL]}
        return [asked, called, _result(marked)]
    return [asked, {"role": kind, "content": marked}]


def _result(content: Any) -> dict[str, Any]:
    """The answer of the tool that `_CALL` called."""
    name = _TOOL["function"]["name"]
    return {"role": "tool", "name": name, "tool_call_id": _CALL["id"], "content": content}


def _has_result(messages: Sequence[Mapping[str, Any]], index: int) -> bool:
    return index + 1 < len(messages) and messages[index + 1]["role"] == "tool"


def _line(trace: TracebackType | None) -> str:
    """The line of the template where an error came up: "line 3: "; empty where none is known."""
    found = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = f"line {trace.tb_lineno}: "
        trace = trace.tb_next
    return found


class _Refused(Exception):
    """What a template says that calls `raise_exception`."""


@lru_cache(maxsize=32)
def _compile(template: str) -> Template:
    """Parse a template. jinja2 is imported late: plain completion never pays its 50 ms."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant wrote, for training; here it is only text."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception}
    environment.globals.update(functions)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise _Refused(message)
