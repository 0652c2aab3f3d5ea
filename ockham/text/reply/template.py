"""A checkpoint's `response_template`: regions of an answer as data, as transformers 5 defines them.

`fields` name regions by what opens and closes them; a field that nothing opens takes what lies
between the others. Each region's text is parsed (`content`), and may be put into a shape
(`transform`). Its expressions are a stranger's: each search has a limit of time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ockham.text.reply.reader import Marks
from ockham.text.reply.schemas import Tools
from ockham.text.reply.splitter import ReplyDelta, Splitter

if TYPE_CHECKING:
    import regex

SEARCH_S = 0.2
"""What one search may take. A template that needs longer is not followed any further."""
_MOST_FIELDS = 32
_MOST_DEPTH = 20
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KEYS = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats"),
    *("join", "optional", "transform", "transform_each"),
}
_PARSERS = ("text", "int", "float", "bool", "json", "xml-inline", "kv-lines")
_TEXTS = ("text", "int", "float", "bool")


class Wrong(ValueError):
    """What is wrong with a template, or with a region of an answer."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What opens or closes a region. `literals` are empty for an expression. `grows`: what was
    found may be the beginning of something longer."""

    pattern: regex.Pattern[str]
    literals: tuple[str, ...] = ()
    grows: bool = True


@dataclass(frozen=True, slots=True)
class Field:
    """A region of an answer."""

    name: str
    open: Anchor | None
    close: Anchor | None
    content: str
    arguments: Mapping[str, Any]
    transform: Any
    each: bool

    @property
    def is_text(self) -> bool:
        """Whether its text is passed on while it comes."""
        return self.content in _TEXTS and self.transform is None


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """The fields of a template, and where the assistant's message begins in a prompt."""

    fields: tuple[Field, ...]
    start: Anchor
    marks: tuple[str, ...]

    @property
    def rest(self) -> Field | None:
        """The field that takes what lies between the others."""
        return next((field for field in self.fields if field.open is None), None)

    @property
    def calls(self) -> bool:
        return any(field.name == "tool_calls" for field in self.fields)

    @property
    def thinks(self) -> bool:
        return any(field.name in _REASONING for field in self.fields)


def read_response_template(spec: Mapping[str, Any]) -> tuple[ResponseTemplate | None, str | None]:
    """The template that a checkpoint's configuration holds; or why it is of no use."""
    try:
        return _read(spec), None
    except ImportError:
        return None, "response_template needs the package regex, which is not installed."
    except (Wrong, RecursionError) as error:
        return None, f"The checkpoint's response_template is passed over: {error}."


def _read(spec: Mapping[str, Any]) -> ResponseTemplate:
    if spec.get("version", 1) != 1:
        raise Wrong(f"its version is {spec.get('version')!r:.40}, not 1")
    fields = spec.get("fields")
    if not isinstance(fields, Mapping) or not 0 < len(fields) <= _MOST_FIELDS:
        raise Wrong(f"it must have 1 to {_MOST_FIELDS} fields")
    start = _anchor(spec, "start_anchor", "start_anchor_pattern")
    if start is None:
        raise Wrong("it has no start_anchor")
    found = tuple(_field(str(name), field) for name, field in fields.items())
    if sum(field.open is None for field in found) > 1:
        raise Wrong("more than one of its fields has nothing that opens it")
    anchors = [anchor for field in found for anchor in (field.open, field.close) if anchor]
    marks = dict.fromkeys(text for anchor in anchors for text in anchor.literals)
    return ResponseTemplate(found, start, tuple(marks))


def _field(name: str, field: Any) -> Field:
    if not isinstance(field, Mapping) or field.keys() - _KEYS:
        raise Wrong(f"its field {name!r:.40} is of no known form")
    content, arguments = field.get("content", "text"), field.get("content_args", {})
    if content not in _PARSERS or not isinstance(arguments, Mapping):
        raise Wrong(f"its field {name!r:.40} has content of no known kind")
    return Field(
        name=name,
        open=_anchor(field, "open", "open_pattern"),
        close=_anchor(field, "close", "close_pattern"),
        content=content,
        arguments=arguments,
        transform=field.get("transform"),
        each=field.get("transform_each") is True,
    )


def _anchor(spec: Mapping[str, Any], literal: str, pattern: str) -> Anchor | None:
    import regex

    given = spec.get(literal)
    if given is not None:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(_is_text(each) for each in texts):
            raise Wrong(f"{literal} must be a text or a list of texts")
        texts = sorted(set(texts), key=len, reverse=True)
        grows = any(a != b and a.startswith(b) for a in texts for b in texts)
        return Anchor(regex.compile("|".join(map(regex.escape, texts))), tuple(texts), grows)
    expression = spec.get(pattern)
    if expression is None:
        return None
    if not _is_text(expression) or len(expression) > 10_000:
        raise Wrong(f"{pattern} must be an expression")
    try:
        return Anchor(regex.compile(expression, regex.DOTALL))
    except Exception as error:  # the library raises more than its own error
        raise Wrong(f"{pattern} is no expression ({error})") from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


class TemplateParser(Splitter):
    """Splits one answer of a model whose checkpoint says how. Calls come whole, when they end."""

    def __init__(
        self,
        template: ResponseTemplate,
        tools: Tools | None,
        *,
        prompt: str = "",
        hidden: Iterable[str] = (),
    ) -> None:
        super().__init__(id_length=None, calls=tools is not None)
        self._template = template
        self._tools = tools
        self._rest = template.rest
        self._hidden = frozenset(hidden) - set(template.marks)
        self._field = self._rest
        self._captured: dict[str, str] = {}
        self._body: list[str] = []
        self._opened = ""
        self._text, self._at, self._before = "", 0, 0
        self._gave_up = False
        self._begin_after(prompt)

    @property
    def position(self) -> int:
        return self._before + self._at

    def feed(self, text: str) -> ReplyDelta:
        self._text = self._text[self._at :] + text
        self._before += self._at
        self._at = 0
        self._read(ended=False)
        return self._taken()

    def finish(self, *, cut: bool = False) -> ReplyDelta:
        if cut:
            rest = len(self._text) - Marks(self._template.marks).begun(self._text, self._at)
            self._text = self._text[:rest]
        self._read(ended=True)
        self.end_answer()
        return self._taken()

    def _begin_after(self, prompt: str) -> None:
        """Take in what the prompt holds of the answer: it may have opened a region."""
        if not prompt:
            return
        try:
            found = list(self._template.start.pattern.finditer(prompt, timeout=SEARCH_S))
        except TimeoutError:
            return
        if found:
            self.feed(prompt[found[-1].end() :])
        # None of it is the answer's own.
        self._content, self._reasoning, self._calls, self._length = [], [], [], 0
        self._before = -len(self._text)
        if self._thinking_since is not None:
            self._thinking_since = 0
        self.thoughts.clear()

    def _read(self, ended: bool) -> None:
        while not self._gave_up:
            try:
                found, held = self._next(ended)
            except TimeoutError:
                self._give_up()
                break
            if found is None:
                self._take(self._text[self._at : held])
                self._at = held
                if ended:
                    self._close()
                return
            field, match = found
            self._take(self._text[self._at : match.start()])
            empty = match.start() == match.end()
            self._at = match.end()
            if field is self._field:  # its end
                said = bool(self._body)
                self._close(match)
                if empty and not said:
                    return
            else:
                self._close()
                self._open_field(field, match)
        self.say(self._text[self._at :])
        self._at = len(self._text)

    def _next(self, ended: bool) -> tuple[tuple[Field, regex.Match[str]] | None, int]:
        """The next anchor that is certain, and how far the text before it is."""
        best: tuple[tuple[int, int, bool], Field, regex.Match[str]] | None = None
        held = len(self._text)
        for field, anchor, opens in self._anchors():
            match = anchor.pattern.search(self._text, self._at, partial=not ended, timeout=SEARCH_S)
            if match is None:
                continue
            if not ended and (match.partial or self._may_grow(anchor, match)):
                held = min(held, match.start())
                continue
            key = (match.start(), match.start() - match.end(), not opens)
            if best is None or key < best[0]:
                best = key, field, match
        if best is None or (best[2].start() >= held and not ended):
            return None, held
        return best[1:], held

    def _anchors(self) -> list[tuple[Field, Anchor, bool]]:
        """What is looked for in the present region: its end; between regions what opens others."""
        found = []
        if self._field is None or self._field is self._rest:
            found = [(each, each.open, True) for each in self._template.fields if each.open]
        if self._field is not None and self._field.close is not None:
            found.append((self._field, self._field.close, False))
        return found

    def _may_grow(self, anchor: Anchor, match: regex.Match[str]) -> bool:
        if match.end() != len(self._text):
            return False
        return match.start() == match.end() or anchor.grows

    def _open_field(self, field: Field, match: regex.Match[str]) -> None:
        self._field = field
        self._captured = {k: v for k, v in match.groupdict().items() if v is not None}
        self._opened = match[0]
        if field.name in _REASONING:
            self.begin_thought()
            self._thinking_since = self.position - len(match[0])

    def _take(self, text: str) -> None:
        """Text of the present region."""
        for mark in self._hidden:
            text = text.replace(mark, "")
        field = self._field
        if field is None or not text:
            return
        if field.is_text and field.name in _REASONING:
            self.think(text)
        elif field.is_text and field.name == "content":
            self.say(text)
        self._body.append(text)

    def _close(self, match: regex.Match[str] | None = None) -> None:
        """The present region ends."""
        field, body = self._field, "".join(self._body)
        raw = self._opened + body + (match[0] if match is not None else "")
        self._field, self._body, self._opened = self._rest, [], ""
        captured, self._captured = self._captured, {}
        if field is None:
            return
        if field.name in _REASONING:
            self.end_thought()
        elif field.name == "content" and field is not self._rest:
            self._fresh = False
        if field.is_text or not (body or raw):
            return
        try:
            value = _value(field, body, captured)
            if field.name == "tool_calls":
                self._say_calls(value if isinstance(value, list) else [value], raw)
            elif field.name == "content":
                self.say(value if isinstance(value, str) else json.dumps(value))
            elif field.name in _REASONING and isinstance(value, str):
                self.think(value)
        except (ValueError, TypeError, KeyError, RecursionError, TimeoutError) as error:
            reason = str(error) if isinstance(error, Wrong) else type(error).__name__
            self.warn(f"A part of the answer could not be read and is given as text: {reason}.")
            self.say(raw)

    def _say_calls(self, calls: list[Any], raw: str) -> None:
        if self._tools is None:
            self.say(raw)
            return
        read = [_call(call, self._tools) for call in calls]
        for name, arguments in read:
            self.begin(name)
            self.arguments(arguments)
            self.end()
        self._fresh = True

    def _give_up(self) -> None:
        self._gave_up = True
        self.warn("The checkpoint's response_template takes too long; the rest is given as text.")
        self.end_thought()


def _call(call: Any, tools: Tools) -> tuple[str, str]:
    """The name and the arguments of a call that was parsed. Raises Wrong."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise Wrong("a call has no name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        raise Wrong("arguments are no object")
    typed = {
        key: json.loads(tools.as_json(name, key, value))
        if isinstance(value, str) and not tools.is_text(name, key)
        else value
        for key, value in arguments.items()
    }
    return _valid(name), _valid(json.dumps(typed, ensure_ascii=False, allow_nan=False))


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("it holds half of a character") from None
    return text


def _value(field: Field, body: str, captured: Mapping[str, str]) -> Any:
    value = _parsed(body, field.content, field.arguments)
    if field.transform is None:
        return value
    if not field.each:
        return _transformed(field.transform, {**captured, "content": value}, 0)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Wrong("a list of objects is missing")
    return [_transformed(field.transform, {**captured, **each}, 0) for each in value]


def _transformed(shape: Any, scope: Mapping[str, Any], depth: int) -> Any:
    """The shape with `{a.b}` replaced by what stands there in the scope."""
    if depth > _MOST_DEPTH:
        raise Wrong("its transform is nested too deeply")
    if isinstance(shape, Mapping):
        return {key: _transformed(value, scope, depth + 1) for key, value in shape.items()}
    if isinstance(shape, list):
        return [_transformed(value, scope, depth + 1) for value in shape]
    if not isinstance(shape, str) or not (shape.startswith("{") and shape.endswith("}")):
        return shape
    value: Any = scope
    for key in shape[1:-1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise Wrong(f"{shape:.60} is missing")
        value = value[key]
    return value


def _parsed(text: str, kind: str, how: Mapping[str, Any]) -> Any:
    """What a region's text says. Raises ValueError."""
    stripped = text.strip() if how.get("strip", True) else text
    if kind == "int":
        return int(stripped)
    if kind == "float":
        return float(stripped)
    if kind == "bool":
        return stripped.lower() in ("true", "1")
    if kind == "json":
        return _json(text, how)
    if kind == "xml-inline":
        return _tags(text, how)
    if kind == "kv-lines":
        lines = text.split(str(how.get("line_sep", "\n")))
        pairs = [line.partition(str(how.get("kv_sep", ":"))) for line in lines]
        return {k.strip(): _inner(v.strip(), how) for k, separator, v in pairs if separator}
    return stripped


def _json(text: str, how: Mapping[str, Any]) -> Any:
    """JSON, perhaps with texts between other marks and with keys that are not quoted."""
    import regex

    quoted: list[str] = []

    def keep(match: regex.Match[str]) -> str:
        quoted.append(match[1])
        return f"\x01{len(quoted) - 1}\x02"

    found = text
    delimiters = how.get("string_delims", [])
    if delimiters and ("\x01" in text or "\x02" in text):
        raise Wrong("control characters in JSON")
    for pair in delimiters:
        first, last = map(regex.escape, map(str, pair))
        found = regex.sub(f"{first}(.*?){last}", keep, found, flags=regex.DOTALL, timeout=SEARCH_S)
    if how.get("unquoted_keys"):
        found = regex.sub(r"(?<=[{,])(\w+):", r'"\1":', found, timeout=SEARCH_S)
    for number, part in enumerate(quoted):
        found = found.replace(f"\x01{number}\x02", json.dumps(part))
    try:
        return json.loads(found)
    except ValueError:
        if how.get("allow_non_json"):
            return text.strip() if how.get("strip", True) else text
        raise Wrong("it is no JSON") from None


def _tags(text: str, how: Mapping[str, Any]) -> dict[str, Any]:
    import regex

    pattern = how.get("tag_pattern")
    if not _is_text(pattern):
        raise Wrong("tag_pattern is missing")
    try:
        found = list(regex.finditer(pattern, text, flags=regex.DOTALL, timeout=SEARCH_S))
    except regex.error as error:
        raise Wrong(f"tag_pattern is no expression ({error})") from None
    result: dict[str, Any] = {}
    for match in found:
        groups = match.groupdict()
        key, value = groups.get("key"), _inner(groups.get("value") or "", how)
        if key is None:
            raise Wrong("tag_pattern has no group 'key'")
        if key in result and how.get("merge_duplicates"):
            before = result[key]
            result[key] = [*(before if isinstance(before, list) else [before]), value]
        else:
            result[key] = value
    return result


def _inner(text: str, how: Mapping[str, Any]) -> Any:
    parser = how.get("value_parser")
    if not isinstance(parser, Mapping):
        return text
    name, inner = parser.get("name", "text"), parser.get("args", {})
    if name not in _PARSERS or not isinstance(inner, Mapping) or "value_parser" in inner:
        raise Wrong("value_parser is of no known kind")
    return _parsed(text, name, inner)
