"""Readers of calls, one for each way to write them that `formats` knows.

Each is a generator over a `Reader` (see there). What it finds it tells a `Sink` while it comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ockham.text.reply import values
from ockham.text.reply.formats import Call, HeadCall, JsonCall, PythonCall, TagCall
from ockham.text.reply.reader import Marks, Reader, Steps, Unparsed
from ockham.text.reply.schemas import Tools

MOST_NAME = 256
"""Characters of a tool's name."""
MOST_HEAD = 1000
"""Characters between a name and its arguments."""
MOST_VALUE = 1 << 24
"""Characters of one argument."""
_NAME = re.compile(r"[^\s\"'<>{}()\[\],;=\ud800-\udfff]+")
_BRACE, _PARENTHESIS, _EQUALS = Marks(["{"]), Marks(["("]), Marks(["="])


class NoCall(Unparsed):
    """What looked like a call is some other text, as far as anybody can tell."""


class Sink(Protocol):
    """Takes calls as they come: a beginning, pieces of arguments as JSON, an end."""

    tools: Tools
    bare: bool
    """Whether only the tools that are known make a text a call."""

    def begin(self, name: str) -> None: ...
    def arguments(self, text: str) -> None: ...
    def end(self) -> None: ...


def read_calls(reader: Reader, calls: tuple[Call, ...], close: str, sink: Sink) -> Steps[None]:
    """Read what stands behind an opening mark: one call, or several. Raises Unparsed."""
    yield from reader.space()
    for fence in [each.fence for each in calls if isinstance(each, PythonCall) and each.fence]:
        if (yield from reader.skip(fence[0])):
            yield from reader.space()
    while True:
        call = yield from _which(reader, calls)
        if isinstance(call, JsonCall) and (yield from reader.peek()) == "[":
            yield from _list(reader, partial(_json_call, reader, call, sink))
        elif isinstance(call, PythonCall) and (yield from reader.peek()) == "[":
            yield from _list(reader, partial(_python_call, reader, sink))
        else:
            yield from _one(reader, call, sink)
        if not (yield from _another(reader, close, call)):
            return


def _one(reader: Reader, call: Call, sink: Sink) -> Steps[None]:
    match call:
        case JsonCall():
            yield from _json_call(reader, call, sink)
        case HeadCall():
            yield from _head_call(reader, call, sink)
        case TagCall():
            yield from _tag_call(reader, call, sink)
        case PythonCall():
            yield from _python_call(reader, sink)


def _another(reader: Reader, close: str, call: Call) -> Steps[bool]:
    """Whether another call follows within the same marks. Reads the closing mark, if it comes."""
    place, base = reader.at, reader.marked
    if reader.marked is None:
        reader.marked = place  # so that the place is not forgotten
    yield from reader.space()
    if isinstance(call, PythonCall) and call.fence:
        fence = call.fence[1]
        if (yield from reader.skip(fence)) or reader.skip_end(fence):
            yield from reader.space()
    if close and ((yield from reader.skip(close)) or reader.skip_end(close)):
        return False
    more = False
    if isinstance(call, JsonCall):
        separated = (yield from reader.peek()) in (",", ";")
        reader.at += separated
        yield from reader.space()
        more = (yield from reader.peek()) == "{"
    elif begin := _beginning(call):
        more = yield from reader.starts(begin)
        if not more and reader.skip_cut(Marks([begin])):
            reader.marked = base
            return False
    elif isinstance(call, PythonCall) and call.rows:
        more = _NAME.fullmatch((yield from reader.peek())) is not None
    if not more and base is None and reader.marked is not None:
        reader.at = reader.marked  # what follows is text
    reader.marked = base
    return more


def _beginning(call: Call) -> str:
    """How another call begins within the same marks, if there is a text by which it is told."""
    if isinstance(call, TagCall):
        return call.name[0]
    return call.before if isinstance(call, HeadCall) and call.tail else ""


def _which(reader: Reader, calls: tuple[Call, ...]) -> Steps[Call]:
    """Which of several kinds of call comes next."""
    if len(calls) == 1:
        return calls[0]
    letter = yield from reader.peek()
    for call in calls:
        if isinstance(call, JsonCall) == (letter == "{"):
            if letter != "[":
                return call
        elif letter == "[":
            break
    if letter != "[":
        return calls[-1]
    count = 2
    while (found := (yield from reader.peek(count)))[count - 1 :].isspace():
        count += 1
    is_json = found[-1] in "{]"
    return next(call for call in calls if isinstance(call, JsonCall) == is_json)


def _list(reader: Reader, read: Callable[[], Steps[None]]) -> Steps[None]:
    """Read calls between brackets."""
    yield from reader.expect("[")
    yield from reader.space()
    while not (yield from reader.skip("]")):
        yield from read()
        yield from reader.space()
        if (yield from reader.skip(",")):
            yield from reader.space()
        elif (yield from reader.peek()) != "]":
            raise Unparsed("the list of calls does not end")


def _json_call(reader: Reader, call: JsonCall, sink: Sink) -> Steps[None]:
    found = _Members(reader, call, sink)
    yield from found.read(0)
    found.end()


class _Members:
    """The members of a call that is a JSON object, in whatever order they come."""

    def __init__(self, reader: Reader, call: JsonCall, sink: Sink) -> None:
        self._reader = reader
        self._call = call
        self._sink = sink
        self._name: str | None = None
        self._waiting: list[str] = []
        self._has_arguments = False

    def read(self, depth: int) -> Steps[None]:
        reader = self._reader
        yield from reader.expect("{")
        yield from reader.space()
        while not (yield from reader.skip("}")):
            key = yield from values.text(reader)
            yield from reader.space()
            yield from reader.expect(":")
            yield from reader.space()
            yield from self._member(key, depth)
            yield from reader.space()
            if (yield from reader.skip(",")):
                yield from reader.space()
            elif (yield from reader.peek()) != "}":
                raise Unparsed("the call does not end")

    def _member(self, key: str, depth: int) -> Steps[None]:
        reader, call = self._reader, self._call
        letter = yield from reader.peek()
        if key == "function" and letter == "{" and depth == 0:
            yield from self.read(1)
        elif key in (*call.names, "function") and letter == '"' and self._name is None:
            self._begin((yield from values.text(reader)))
        elif key in call.arguments and not self._has_arguments:
            yield from self._arguments(letter)
        elif self._sink.bare and self._name is None and key not in ("type", "id"):
            raise NoCall("another object than a call")
        else:
            yield from values.scan(reader, values.JSON, lambda _: None)

    def _arguments(self, letter: str) -> Steps[None]:
        if letter == "{":
            self._has_arguments = True
            yield from values.scan(self._reader, values.JSON, self._write)
        elif letter == '"':  # some write the arguments as a text that holds JSON
            self._has_arguments = True
            inside = Reader()
            inside.add((yield from values.text(self._reader)))
            inside.ended = True
            if (yield from inside.peek()) != "{":
                raise Unparsed("the arguments are no object")
            yield from values.scan(inside, values.JSON, self._write)
        else:
            written: list[str] = []
            yield from values.scan(self._reader, values.JSON, written.append)
            if written != ["null"]:
                raise Unparsed("the arguments are no object")

    def _begin(self, name: str) -> None:
        self._name = _checked(name, self._sink)
        self._sink.begin(name)
        if self._waiting:
            self._sink.arguments("".join(self._waiting))

    def _write(self, text: str) -> None:
        if self._name is None:
            self._waiting.append(text)
        else:
            self._sink.arguments(text)

    def end(self) -> None:
        if self._name is None:
            raise (
                NoCall("another object than a call")
                if self._sink.bare
                else Unparsed("the call names no tool")
            )
        if not self._has_arguments:
            self._sink.arguments("{}")
        self._sink.end()


def _head_call(reader: Reader, call: HeadCall, sink: Sink) -> Steps[None]:
    yield from reader.expect(call.before)
    name = (yield from reader.until(Marks([*call.after, "{"]), MOST_NAME)).strip()
    _checked(name, sink)
    yield from reader.until(_BRACE, MOST_HEAD)
    sink.begin(name)
    yield from values.scan(reader, call.notation, sink.arguments)
    for text in call.tail:
        yield from reader.space()
        if not (yield from reader.skip(text.lstrip())):
            reader.skip_end(text.lstrip())
    sink.end()


def _tag_call(reader: Reader, call: TagCall, sink: Sink) -> Steps[None]:
    before, after = call.name
    yield from reader.expect(before)
    ends = [after] if before else [after, call.key[0], call.end]
    name = (yield from reader.until(Marks(ends), MOST_NAME)).strip()
    _checked(name, sink)
    yield from reader.skip(after)
    sink.begin(name)
    sink.arguments("{")
    between, after_key = "", Marks([call.key[1], call.other])
    while True:
        yield from reader.space()
        if (yield from reader.skip(call.end)):
            break
        yield from reader.expect(call.key[0])
        key = (yield from reader.until(after_key, MOST_NAME)).strip()
        said = None
        if call.other:
            said = not (yield from reader.skip(call.other))
        if said is not False:
            yield from reader.expect(call.key[1])
        if call.value[0]:
            yield from reader.space()
            yield from reader.expect(call.value[0])
        elif call.lines:
            yield from reader.skip("\n")
        sink.arguments(f"{between}{values.quoted(key)}: ")
        between = ", "
        is_text = sink.tools.is_text(name, key) if said is None else said
        yield from _tagged_value(reader, call, sink, name, key, is_text)
    sink.arguments("}")
    sink.end()


def _tagged_value(
    reader: Reader, call: TagCall, sink: Sink, name: str, key: str, is_text: bool
) -> Steps[None]:
    """Read a value and its closing tag. A text is passed on while it comes."""
    end = call.value[1]
    marks = Marks([f"\n{end}", end]) if call.lines else Marks([end])
    if not is_text:
        raw = yield from reader.until(marks, MOST_VALUE)
        sink.arguments(sink.tools.as_json(name, key, raw))
    else:
        sink.arguments('"')
        while (found := marks.find(reader.text, reader.at)) is None:
            stop = len(reader.text) - marks.held(reader.text, reader.at)
            if stop > reader.at:
                sink.arguments(values.quoted(reader.text[reader.at : stop])[1:-1])
                reader.at = stop
            if not (yield from reader.more()):
                raise Unparsed(f"{end!r} is missing")
        sink.arguments(values.quoted(reader.text[reader.at : found.start()])[1:-1] + '"')
        reader.at = found.start()
    yield from reader.skip("\n")
    yield from reader.expect(end)


def _python_call(reader: Reader, sink: Sink) -> Steps[None]:
    name = (yield from reader.until(_PARENTHESIS, MOST_NAME)).strip()
    _checked(name, sink)
    yield from reader.expect("(")
    sink.begin(name)
    sink.arguments("{")
    between = ""
    while True:
        yield from reader.space()
        if (yield from reader.skip(")")):
            break
        key = (yield from reader.until(_EQUALS, MOST_NAME)).strip()
        if not _NAME.fullmatch(key):
            raise Unparsed("an argument has no name")
        yield from reader.expect("=")
        sink.arguments(f"{between}{values.quoted(key)}: ")
        between = ", "
        yield from values.scan(reader, values.PYTHON, sink.arguments)
        yield from reader.space()
        if not (yield from reader.skip(",")) and (yield from reader.peek()) != ")":
            raise Unparsed("the call does not end")
    sink.arguments("}")
    sink.end()


def _checked(name: str, sink: Sink) -> str:
    """The name of a tool. Raises Unparsed if it can be none."""
    if len(name) > MOST_NAME or not _NAME.fullmatch(name):
        raise NoCall("another text") if sink.bare else Unparsed(f"{name[:40]!r} is no name")
    if sink.bare and not sink.tools.has(name):
        raise NoCall("no tool has this name")
    return name
