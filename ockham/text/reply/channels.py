"""The messages of gpt-oss: headers name a channel and perhaps a tool, bodies follow."""

from __future__ import annotations

import re
from typing import Protocol

from ockham.text.reply import values
from ockham.text.reply.calls import MOST_NAME, Sink
from ockham.text.reply.formats import HEADERS
from ockham.text.reply.reader import Marks, Reader, Steps, Unparsed

MOST_HEADER = 2000
"""Characters of a header. A longer one is text."""
_MARKS = Marks(HEADERS)
_TO = re.compile(r"to=([^\s<|]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]+)")
_TOOL = "functions."
_RECIPIENT = " to="
_BEGINS = ("<|start|>", "<|channel|>")


class Messages(Sink, Protocol):
    """What is told of texts beside calls."""

    reader: Reader

    def say(self, text: str) -> None: ...
    def think(self, text: str) -> None: ...
    def begin_thought(self) -> None: ...
    def end_thought(self) -> None: ...
    def not_read(self, error: Unparsed) -> None: ...


def read_channels(splitter: Messages, *, calls: bool) -> Steps[None]:
    """Read messages to the end of the answer. Without `calls`, those to tools are text."""
    reader = splitter.reader
    # The prompt ends within the first header, which may go on with whom the message is to.
    within = yield from reader.starts(_RECIPIENT)
    while True:
        mark = _BEGINS[0] if within else (yield from _body(splitter, thinking=False))
        within = False
        if mark is None:
            return
        if mark not in _BEGINS:
            continue
        header = mark
        while True:
            try:
                header += yield from reader.until(_MARKS, MOST_HEADER)
            except Unparsed:
                # An answer that is cut within a header says nothing by it.
                reader.at = len(reader.text) if reader.ended else reader.at
                break
            mark = _next_mark(reader)
            if mark == "<|message|>":
                yield from _message(splitter, header, calls)
                break
            if mark not in _BEGINS:
                break
            header = mark if mark == "<|start|>" else header + mark


def _message(splitter: Messages, header: str, calls: bool) -> Steps[None]:
    """Read what a header announced."""
    to, channel = _TO.search(header), _CHANNEL.search(header)
    if calls and to is not None and to[1].startswith(_TOOL):
        yield from _call(splitter, to[1].removeprefix(_TOOL))
    elif channel is not None and channel[1] == "analysis" and to is None:
        splitter.begin_thought()
        yield from _body(splitter, thinking=True, peek=True)
        splitter.end_thought()


def _call(splitter: Messages, name: str) -> Steps[None]:
    reader = splitter.reader
    reader.marked = reader.at
    try:
        if len(name) > MOST_NAME:
            raise Unparsed("a name is too long")
        splitter.begin(name)
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            raise Unparsed("the arguments are no object")
        yield from values.scan(reader, values.JSON, splitter.arguments)
        splitter.end()
    except Unparsed as error:
        splitter.not_read(error)
    finally:
        reader.marked = None


def _body(splitter: Messages, *, thinking: bool, peek: bool = False) -> Steps[str | None]:
    """Read text up to the next mark and return that, which is read too unless it is only to be
    looked at; None at the end of the answer."""
    reader = splitter.reader
    take = splitter.think if thinking else splitter.say
    while True:
        text, found = reader.before(_MARKS)
        take(text)
        if found is not None:
            reader.at += 0 if peek else len(found[0])
            return found[0]
        if not (yield from reader.more()) and reader.at == len(reader.text):
            return None


def _next_mark(reader: Reader) -> str:
    found = _MARKS.find(reader.text, reader.at)
    assert found is not None, "it was just found"
    reader.at = found.end()
    return found[0]
