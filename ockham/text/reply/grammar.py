"""Grammars of answers that must call a tool, or whose calls must follow their schemas.

They are whole grammars in llguidance's notation: a thought first where the model thinks, then the
calls as the model's format writes them, or a text in which a call may begin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ockham.core.errors import InvalidRequest
from ockham.text.reply.formats import (
    ANSWER_HEADER,
    END,
    ESCAPES,
    START,
    THOUGHT_HEADER,
    Format,
    HeadCall,
    JsonCall,
    PythonCall,
    TagCall,
    Thought,
)
from ockham.text.reply.values import JSON

_COMPACT = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": ESCAPES,
}
"""White space without end is what small models write where they may."""


class Grammar:
    """Puts a grammar together for one format. `special` gives the id of a text that is a special
    token, which a grammar must name by its id."""

    def __init__(
        self,
        format_: Format | None,
        thought: Thought | None,
        special: Callable[[str], int | None],
    ) -> None:
        self._format = format_ or Format(name="none")
        self._thought = thought
        self._special = special
        self._rules: list[str] = []
        self._count = 0

    def required(
        self, tools: Sequence[Mapping[str, Any]], *, parallel: bool, in_thought: bool
    ) -> str:
        """Of an answer that calls one of the tools, or several if `parallel`."""
        return self._whole(self._calls(tools, parallel), in_thought)

    def lazy(self, tools: Sequence[Mapping[str, Any]], *, in_thought: bool) -> str | None:
        """Of any answer in which calls follow the tools' schemas; None where the format has no
        opening mark at which that could begin."""
        begin, _, end = self._format.written
        marks = self._format.open
        if not marks or not begin.startswith(marks[0]) or self._format.channels:
            return None
        text = self._rule("(?s:.*)", terminal=True)
        token = self._special(marks[0])
        if token is None:
            opened = self._rule(f"{text} {json.dumps(marks[0])}", flag="[lazy]")
        else:
            opened = f"{text} <[{token}]>"
        call = self._one_of(tools)
        if self._format.wrapped:
            calls = call
        else:
            between = self._literal(self._format.written[1])
            calls = f"{call} ({between} {call})*"
        rest = f"{self._literal(begin[len(marks[0]) :])} {calls} {self._literal(end)}"
        return self._whole(f"({opened} {rest})* {text}", in_thought)

    def answer(
        self,
        schema: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]],
        *,
        parallel: bool,
        in_thought: bool,
    ) -> str:
        """Of an answer that is JSON of a schema, or calls tools if there are some, after its
        thought. The schema says itself how JSON is written (`x-guidance`)."""
        said = self._said(f"%json {json.dumps(schema)}")
        # A call that is a JSON object itself cannot be told from the answer by its first bytes.
        if tools and not self._format.bare:
            said = f"({said} | {self._calls(tools, parallel)})"
        return self._whole(said, in_thought)

    def around(self, *, in_thought: bool) -> str:
        """Of an answer that is a rule `answer`, which is not in it, after its thought."""
        return self._whole(self._said("answer"), in_thought)

    # -- parts ---------------------------------------------------------------------------------

    def _whole(self, answer: str, in_thought: bool) -> str:
        thought = self._thought_before(in_thought)
        return "\n".join([f"start: {thought} {answer}", *self._rules]) + "\n"

    def _said(self, body: str) -> str:
        """An answer that calls nothing, behind its header if it has one."""
        said = self._rule(body)
        return f"{self._literal(ANSWER_HEADER)} {said}" if self._format.channels else said

    def _thought_before(self, in_thought: bool) -> str:
        if self._format.channels:
            if in_thought:
                raise InvalidRequest("this model's prompt opens a channel.", "tool_choice")
            said = f"{self._literal(THOUGHT_HEADER)} {self._text(END)}"
            return f"({said} {self._literal(START)})?"
        if self._thought is None:
            return ""
        # As much as models write: without a bound a small one writes nothing else.
        space = self._rule(r"[ \t\r\n]{0,4}", terminal=True)
        body = f"{self._text(self._thought.close)} {space}"
        return body if in_thought else f"({self._literal(self._thought.open)} {body})?"

    def _calls(self, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        begin, between, end = map(self._literal, self._format.written)
        call = self._one_of(tools)
        if self._format.wrapped or self._format.channels:
            one = self._rule(f"{begin} {call} {end}")
            several = parallel and not self._format.channels
            return f"{one} ({between} {one})*" if several else one
        more = f"({between} {call})*" if parallel else ""
        return f"{begin} {call} {more} {end}"

    def _one_of(self, tools: Sequence[Mapping[str, Any]]) -> str:
        return self._rule(" | ".join(self._rule(self._call(tool["function"])) for tool in tools))

    def _call(self, function: Mapping[str, Any]) -> str:
        name, schema = str(function["name"]), closed(function.get("parameters") or {})
        if self._format.channels:
            head = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
            return f"{self._literal(head)} {self._json(schema)}"
        match self._format.calls[0]:
            case JsonCall(names, arguments):
                head = f'{{"{names[0]}": {json.dumps(name)}, "{arguments[0]}": '
                return f'{self._literal(head)} {self._json(schema)} "}}"'
            case HeadCall(before, after, notation, tail):
                head = before + name + (after[0] if after else "")
                if notation == JSON:
                    end = self._literal("".join(tail))
                    return f"{self._literal(head)} {self._json(schema)} {end}"
                quote = notation.quotes[0]
                members = self._members(
                    schema, ",", lambda key, part: f"{key}:", lambda part: self._bare(part, quote)
                )
                return f'{self._literal(head)} "{{" {members} "}}"'
            case TagCall() as call:
                head = self._literal(f"{call.lead}{call.name[0]}{name}{call.name[1]}")
                line = "\n" if call.lines else ""
                row = "\n" if call.rows else line
                between = call.gap + line + call.value[0]
                members = self._members(
                    schema,
                    "",
                    lambda key, part: f"{row}{call.key[0]}{key}{_behind(call, part)}{between}",
                    lambda part: self._tagged(part, line + call.value[1] + call.gap),
                )
                return f"{head} {members} {self._literal(row + call.end)}"
            case PythonCall():
                members = self._members(schema, ", ", lambda key, _: f"{key}=", self._json)
                return f'{self._literal(name + "(")} {members} ")"'

    def _members(
        self,
        schema: Mapping[str, Any],
        between: str,
        before: Callable[[str, Any], str],
        value: Callable[[dict[str, Any]], str],
    ) -> str:
        """The properties of a schema in their order; those that are not required may be left
        out."""
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        required = required if isinstance(required, list) else []
        separator = self._literal(between)
        first = rest = ""
        for key, part in reversed(list(properties.items())):
            inner = {**part, "$defs": schema.get("$defs", {})} if isinstance(part, Mapping) else {}
            item = self._rule(f"{self._literal(before(key, part))} {value(inner)}")
            if key in required:
                first, rest = f"{item} {rest}", f"{separator} {item} {rest}"
            else:
                skipped = f"({first})" if first.strip() else ""
                first = self._rule(f"{item} {rest} | {skipped}" if skipped else f"({item} {rest})?")
                rest = self._rule(f"({separator} {item})? {rest}")
        return first

    def _tagged(self, part: dict[str, Any], end: str) -> str:
        """A value and its closing tag."""
        values = part.get("enum")
        if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
            options = " | ".join(self._literal(each + end) for each in values)
            return f"({options})"
        if _is_text(part):
            return self._text(end)
        return f"{self._json(part)} {self._literal(end)}"

    def _bare(self, part: dict[str, Any], quote: str) -> str:
        """A value in Gemma's notation."""
        mark, values, kind = self._literal(quote), part.get("enum"), part.get("type")
        if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
            return "(" + " | ".join(self._literal(quote + each + quote) for each in values) + ")"
        if kind in ("integer", "number", "boolean", "null"):
            return self._json(part)
        text = self._rule(f"{mark} {self._text(quote)}")
        if kind == "string":
            return text
        if kind == "array":
            items = part.get("items")
            inner = {**items, "$defs": part["$defs"]} if isinstance(items, Mapping) else {}
            entry = self._bare(inner, quote)
            return self._rule(f'"[" ({entry} ("," {entry})*)? "]"')
        if kind == "object" and isinstance(part.get("properties"), Mapping):
            members = self._members(
                part, ",", lambda key, _: f"{key}:", lambda inner: self._bare(inner, quote)
            )
            return self._rule(f'"{{" {members} "}}"')
        word = self._rule(r"[A-Za-z_][A-Za-z0-9_]*", terminal=True)
        name = f"value_{self._next()}"
        scalar = self._json({"type": ["number", "boolean", "null"]})
        listed = f'"[" ({name} ("," {name})*)? "]"'
        keyed = f'"{{" ({word} ":" {name} ("," {word} ":" {name})*)? "}}"'
        self._rules.append(f"{name}: {text} | {scalar} | {listed} | {keyed}")
        return name

    def _json(self, schema: Mapping[str, Any]) -> str:
        whole = {**schema, "x-guidance": _COMPACT}
        if not whole.get("$defs"):
            whole.pop("$defs", None)
        return self._rule(f"%json {json.dumps(whole)}")

    def _text(self, end: str) -> str:
        """Any text up to `end`, and that."""
        token = self._special(end)
        if token is not None:
            return f"{self._rule('(?s:.*)', terminal=True)} <[{token}]>"
        return self._rule("/(?s:.*)/", flag=f"[suffix={json.dumps(end)}]")

    def _literal(self, text: str) -> str:
        """A text that must come, whose special tokens are named by their ids."""
        parts, plain, at = [], "", 0
        specials = [mark for mark in _marks(self._format, self._thought) if mark in text]
        while at < len(text):
            mark = next((mark for mark in specials if text.startswith(mark, at)), None)
            token = None if mark is None else self._special(mark)
            if mark is None or token is None:
                plain += text[at]
                at += 1
                continue
            parts += [json.dumps(plain)] * bool(plain) + [f"<[{token}]>"]
            plain, at = "", at + len(mark)
        return " ".join(parts + [json.dumps(plain, ensure_ascii=False)] * bool(plain))

    def _rule(self, body: str, *, terminal: bool = False, flag: str = "") -> str:
        """The name of a new rule."""
        name = f"T{self._next()}" if terminal else f"r{self._next()}"
        self._rules.append(f"{name}{flag}: {f'/{body}/' if terminal else body}")
        return name

    def _next(self) -> int:
        self._count += 1
        return self._count


def _is_text(part: Any) -> bool:
    """Whether what a schema describes is a text, as is what is not described."""
    if not isinstance(part, Mapping):
        return True
    values = part.get("enum")
    if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
        return True
    return part.get("type", "string") == "string" and not {"anyOf", "oneOf", "$ref"} & part.keys()


def _behind(call: TagCall, part: Any) -> str:
    """What stands behind the key of such a value."""
    return call.other if call.other and not _is_text(part) else call.key[1]


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema as one of an object without properties that it does not name."""
    found = {"type": "object", "properties": {}, **schema}
    if found["properties"]:
        found.setdefault("additionalProperties", False)
    return found


def _marks(format_: Format, thought: Thought | None) -> list[str]:
    quotes = [
        quote
        for call in format_.calls
        if isinstance(call, HeadCall)
        for quote in (*call.notation.quotes, *call.after)
    ]
    thoughts = [thought.open, thought.close] if thought else []
    marks = [*format_.marks, *quotes, *thoughts, "<|constrain|>"]
    return sorted({mark for mark in marks if mark != '"'}, key=len, reverse=True)
