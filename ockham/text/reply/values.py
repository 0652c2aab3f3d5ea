"""Values that models write as arguments, in several notations, as JSON while they come.

JSON, Python's literals, and Gemma's own notation differ in how a text is quoted and whether keys
are. All are read by one scanner, which writes JSON: `{"a": [1, "b"]}`, texts in UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Literal

import msgspec

from ockham.text.reply.reader import Marks, Reader, Steps, Unparsed

Write = Callable[[str], None]

MOST_DEPTH = 100
"""Of lists and objects within each other, as in requests."""
MOST_WORD = 400
"""Characters of a number or of a name."""
_WORD = re.compile(r"[^\s,:=\[\]{}()<>\"']*")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HALVES = re.compile("[\ud800-\udfff]")
_LITERALS = {
    "true": "true",
    "false": "false",
    "null": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "a": "\a", "v": "\v", "0": "\0"}
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}
_AFTER = frozenset(",:)]}")
"""What may follow a text. A quote before anything else is part of a text that was not escaped."""


class Notation(msgspec.Struct, frozen=True):
    """How values are written. `quotes` are what texts stand between. With `escapes` a backslash
    escapes what follows. With `lenient` a quote ends a text only before what may follow one."""

    quotes: tuple[str, ...] = ('"',)
    escapes: bool = True
    bare_keys: bool = False
    lenient: bool = False


JSON = Notation()
PYTHON = Notation(("'", '"'), lenient=True)
GEMMA = Notation(('<|"|>',), escapes=False, bare_keys=True)
FUNCTION_GEMMA = Notation(("<escape>",), escapes=False, bare_keys=True)

_Expected = Literal["value", "first value", "key", "first key", "after"]
_CLOSED = {"{": "}", "[": "]", "(": ")"}
_WRITTEN = {"{": "{", "[": "[", "(": "[", "}": "}", "]": "]", ")": "]"}


def scan(reader: Reader, notation: Notation, write: Write) -> Steps[None]:
    """Read one value and write it as JSON, piece by piece. Raises Unparsed for what is none, after
    what could be read has been written."""
    open_: list[str] = []
    expected: _Expected = "value"
    while True:
        yield from reader.space()
        letter = yield from reader.peek()
        if not letter:
            raise Unparsed("the arguments end before they are complete")
        if expected == "after":
            if letter == _CLOSED[open_[-1]]:
                reader.at += 1
                write(_WRITTEN[letter])
                open_.pop()
            elif letter == ",":
                reader.at += 1
                yield from reader.space()
                if (yield from reader.peek()) == _CLOSED[open_[-1]]:
                    continue  # a comma behind the last entry
                write(", ")
                expected = "key" if open_[-1] == "{" else "value"
                continue
            else:
                raise Unparsed(f"{letter!r} stands where a comma or an end should")
        elif expected.startswith("first") and letter == _CLOSED[open_[-1]]:
            reader.at += 1
            write(_WRITTEN[letter])
            open_.pop()
        elif expected.endswith("key"):
            yield from _key(reader, notation, write)
            expected = "value"
            continue
        elif letter in _CLOSED:
            if len(open_) >= MOST_DEPTH:
                raise Unparsed("the arguments are nested too deeply")
            reader.at += 1
            write(_WRITTEN[letter])
            open_.append(letter)
            expected = "first key" if letter == "{" else "first value"
            continue
        else:
            yield from _scalar(reader, notation, write)
        if not open_:
            return
        expected = "after"


def text(reader: Reader, notation: Notation = JSON) -> Steps[str]:
    """Read a text in quotes. Raises Unparsed."""
    written: list[str] = []
    if not (yield from _text(reader, notation, written.append)):
        raise Unparsed("a name in quotes is missing")
    found: str = json.loads("".join(written))
    return found


def quoted(text: str) -> str:
    """A text as JSON. Halves of surrogate pairs, which are no characters, become U+FFFD."""
    return json.dumps(_HALVES.sub("\N{REPLACEMENT CHARACTER}", text), ensure_ascii=False)


def _key(reader: Reader, notation: Notation, write: Write) -> Steps[None]:
    if not (yield from _text(reader, notation, write)):
        if not notation.bare_keys:
            raise Unparsed("a key in quotes is missing")
        key = yield from reader.until(_COLON, MOST_WORD)
        write(quoted(key.strip()))
    yield from reader.space()
    yield from reader.expect(":")
    write(": ")


_COLON = Marks([":"])


def _scalar(reader: Reader, notation: Notation, write: Write) -> Steps[None]:
    if (yield from _text(reader, notation, write)):
        return
    word = yield from name(reader)
    written = _LITERALS.get(word)
    if written is None and _JSON_NUMBER.fullmatch(word):
        written = word
    if written is None and _NUMBER.fullmatch(word):  # `1.` and `.5` are numbers in Python
        written = json.dumps(float(word)) if "." in word else str(_whole(word))
        written = written if _JSON_NUMBER.fullmatch(written) else None
    if written is None:
        raise Unparsed(f"{word[:20]!r} is no value")
    write(written)


def _whole(word: str) -> int:
    """A number without a point as Python writes it: `+5`, `007`, `+1e3`."""
    return int(float(word)) if "e" in word.lower() else int(word)


def name(reader: Reader) -> Steps[str]:
    """Read a word: a number, or a name. Raises Unparsed if it is too long."""
    while True:
        found = _WORD.match(reader.text, reader.at)
        assert found is not None, "it matches nothing too"
        if found.end() - reader.at > MOST_WORD:
            raise Unparsed("a name or number is too long")
        if found.end() < len(reader.text) or not (yield from reader.more()):
            word = found[0]
            reader.at += len(word)
            return word


def _text(reader: Reader, notation: Notation, write: Write) -> Steps[bool]:
    """Read a text in quotes and write it as JSON; whether there was one."""
    for quote in notation.quotes:
        if (yield from reader.skip(quote)):
            break
    else:
        return False
    marks = Marks([quote, "\\"] if notation.escapes else [quote])
    write('"')
    while True:
        found = marks.find(reader.text, reader.at)
        held = 0 if found else marks.held(reader.text, reader.at)
        end = found.start() if found else len(reader.text) - held
        if end > reader.at:
            write(quoted(reader.text[reader.at : end])[1:-1])
            reader.at = end
        if found is None:
            if not (yield from reader.more()):
                raise Unparsed("a text does not end")
        elif found[0] == "\\":
            reader.at = found.start()
            write(quoted((yield from _escape(reader)))[1:-1])
        elif (yield from _ends(reader, notation, quote)):
            reader.at += len(quote)
            write('"')
            return True
        else:
            reader.at += len(quote)
            write(quoted(quote)[1:-1])


def _ends(reader: Reader, notation: Notation, quote: str) -> Steps[bool]:
    """Whether the quote that comes next ends a text, or was only not escaped."""
    if not notation.lenient:
        return True
    count = len(quote) + 1
    while (after := (yield from reader.peek(count)))[count - 1 :].isspace():
        count += 1
    return len(after) < count or after[-1] in _AFTER


def _escape(reader: Reader) -> Steps[str]:
    """Read a backslash and what it escapes. What no language knows stays as it is."""
    letter = (yield from reader.peek(2))[1:]
    if not letter:
        raise Unparsed("a text does not end")
    digits = _HEXADECIMAL.get(letter)
    if digits is None:
        reader.at += 2
        if letter == "\n":
            return ""  # Python's way to go on in another line
        return _ESCAPED.get(letter, letter if letter in "\"'\\/" else f"\\{letter}")
    code = _hexadecimal((yield from reader.peek(2 + digits)), digits)
    if code is None:
        reader.at += 2
        return f"\\{letter}"
    reader.at += 2 + digits
    if 0xD800 <= code < 0xDC00 and (yield from reader.starts("\\u")):
        low = _hexadecimal((yield from reader.peek(6)), 4)
        if low is not None and 0xDC00 <= low < 0xE000:
            reader.at += 6
            code = 0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00
    return chr(code)


def _hexadecimal(escape: str, digits: int) -> int | None:
    found = re.fullmatch(r"[0-9a-fA-F]+", escape[2:], re.ASCII)
    if found is None or len(escape) < 2 + digits or int(found[0], 16) > 0x10FFFF:
        return None
    return int(found[0], 16)
