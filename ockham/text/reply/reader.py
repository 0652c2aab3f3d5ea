"""A text that comes in pieces, read as if it were whole.

A reader's user is a generator. It yields where it needs more text, and goes on when some has come.
So one piece of code reads texts that are whole and texts that arrive letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Reads until it has what it returns; yields where it needs more text."""

_SPACE = re.compile(r"[ \t\r\n]*")


class Unparsed(Exception):
    """What was read is not of the form that was expected; the message says what is wrong."""


class Marks:
    """Texts that are looked for, and the beginnings of them that a piece may end with."""

    def __init__(self, texts: Iterable[str]) -> None:
        # The longest first: where one mark begins another, the longer one is meant.
        self.texts = tuple(sorted({text for text in texts if text}, key=lambda t: (-len(t), t)))
        self._found = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._begun = {text[:end] for text in self.texts for end in range(1, len(text))}
        self._longest = max(map(len, self.texts), default=0)

    def find(self, text: str, start: int) -> re.Match[str] | None:
        return self._found.search(text, start)

    def held(self, text: str, start: int) -> int:
        """How many characters at the end of the text might begin a mark."""
        most = min(self._longest - 1, len(text) - start)
        for length in range(most, 0, -1):
            if text[len(text) - length :] in self._begun:
                return length
        return 0

    def begun(self, text: str, start: int) -> int:
        """How many characters at the end of a text that was cut are a part of a mark. Brackets
        alone may be anything: there must be a letter."""
        length = self.held(text, start)
        return length if any(map(str.isalpha, text[len(text) - length :])) and length else 0

    def begins(self, text: str) -> bool:
        """Whether the text is the beginning of a mark, and no more than that."""
        return text in self._begun


class Reader:
    """The text so far, and the place in it up to which it has been read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.cut = False
        """Whether the text ended because no more of it was let come."""
        self._forgotten = 0
        self.marked: int | None = None
        """The place from which the text is still needed: see `since`."""

    def add(self, text: str) -> None:
        """More text. What was read and is not needed any more is forgotten."""
        keep = self.at if self.marked is None else min(self.at, self.marked)
        if keep > 4096:
            self.text = self.text[keep:]
            self.at -= keep
            self._forgotten += keep
            if self.marked is not None:
                self.marked -= keep
        self.text += text

    @property
    def position(self) -> int:
        """How many characters have been read."""
        return self._forgotten + self.at

    def since(self) -> str:
        """The text from the marked place to where it has been read."""
        return self.text[self.at if self.marked is None else self.marked : self.at]

    def more(self) -> Steps[bool]:
        """Wait for more text; whether there is some."""
        length = len(self.text)
        while len(self.text) == length and not self.ended:
            before = self.at
            yield
            length -= before - self.at  # what was forgotten in the meantime
        return len(self.text) > length

    def peek(self, count: int = 1) -> Steps[str]:
        """The next characters, fewer at the end of the text. They are not read by this."""
        while len(self.text) - self.at < count and not self.ended:
            yield
        return self.text[self.at : self.at + count]

    def space(self) -> Steps[None]:
        """Read white space."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or not (yield from self.more()):
                return

    def starts(self, text: str) -> Steps[bool]:
        """Whether the next characters are `text`, found out with as few of them as possible."""
        for count in range(1, len(text) + 1):
            if (yield from self.peek(count)) != text[:count]:
                return False
        return True

    def skip(self, text: str) -> Steps[bool]:
        """Read `text` if it comes next; whether it did."""
        if not (yield from self.starts(text)):
            return False
        self.at += len(text)
        return True

    def skip_end(self, text: str) -> bool:
        """Read what is left of a text that has ended, if that is how `text` begins; whether it
        was."""
        rest = self.text[self.at :]
        if not (self.ended and rest and text.startswith(rest)):
            return False
        self.at = len(self.text)
        return True

    def skip_cut(self, marks: Marks) -> bool:
        """Read what is left of a text that was cut, if that is a part of a mark; whether it was."""
        if not self.cut or self.at + marks.begun(self.text, self.at) < len(self.text):
            return False
        self.at = len(self.text)
        return True

    def before(self, marks: Marks) -> tuple[str, re.Match[str] | None]:
        """Read the text up to the next mark, as far as it is certain, and that mark, which comes
        next. A part of a mark with which a text was cut is left out."""
        found = marks.find(self.text, self.at)
        stop = found.start() if found else len(self.text)
        end = stop
        if found is None and not self.ended:
            stop = end = stop - marks.held(self.text, self.at)
        elif found is None and self.cut:
            end = stop - marks.begun(self.text, self.at)
        text, self.at = self.text[self.at : end], stop
        return text, found

    def expect(self, text: str) -> Steps[None]:
        """Read `text`. Raises Unparsed if something else comes next."""
        if not (yield from self.skip(text)):
            raise Unparsed(f"{text!r} is missing")

    def until(self, marks: Marks, most: int) -> Steps[str]:
        """Read what stands before the next mark; the mark comes next. Raises Unparsed if none
        comes within `most` characters."""
        start = 0
        while True:
            found = marks.find(self.text, self.at + max(0, start))
            if found is not None:
                text = self.text[self.at : found.start()]
                self.at = found.start()
                return text
            start = len(self.text) - self.at - marks.held(self.text, self.at)
            if start > most or not (yield from self.more()):
                raise Unparsed(f"{marks.texts[-1]!r} is missing")
