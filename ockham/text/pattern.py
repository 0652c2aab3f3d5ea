"""Regular expressions in time that is bounded, whatever the expression and the text are.

Python's own matcher goes back and tries again, which may take exponential time. This one follows
all ways through the expression side by side, character by character (Thompson 1968, as Pike's
machine does it with captures), and counts its steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MOST_CHARACTERS = 256
"""Of an expression."""
MOST_CODE = 512
"""Instructions of a compiled one."""
MOST_STEPS = 100_000
"""Of looking through one text: some 50 ms."""
_REPEAT = re.compile(r"\{(\d{1,3})(,(\d{1,3})?)?\}")
_ZERO_WIDTH = {"^": "^", "$": "$", "\\b": r"\b", "\\B": r"\B", "\\A": r"\A", "\\Z": r"\Z"}

Test = Callable[[str, int], object]
"""Whether the character at a place of a text fits, or the place does."""


class TooSlow(Exception):
    """Looking through a text would take more than `MOST_STEPS` steps."""


@dataclass(slots=True)
class _Code:
    """One instruction. `kind` is "char" or "place" (go on if `test` is true), "split" (so many
    instructions further, to `first` rather than to `second`), "save" (the captured group begins
    here, or, if `first` is 1, ends here), or "match"."""

    kind: str
    test: Test | None = None
    first: int = 0
    second: int = 0


_Thread = tuple[int, int, int]
"""Where it is in the code, and where the captured group began and ended: -1 if it has not."""


class Pattern:
    """An expression with at most one group that captures.

    It has characters, `.`, classes, `\\d` and the like, groups, `|`, repeats, greedy or lazy, and
    the anchors `^ $ \\b`. Raises ValueError, with a clause that says why, for anything else.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"it has {len(text)} characters, at most {MOST_CHARACTERS}")
        self._code = _Compiler(text).code

    def last(self, text: str) -> str | None:
        """What the group captured in the last match of a text, or the whole match if there is no
        group; None without a match. Raises TooSlow."""
        steps, at = MOST_STEPS, 0
        found: tuple[int, int] | None = None
        while at <= len(text):
            match, steps = self._next(text, at, steps)
            if match is None:
                break
            end, captured = match
            found = captured
            at = max(end, at + 1)
        return None if found is None else text[found[0] : found[1]]

    def _next(
        self, text: str, at: int, steps: int
    ) -> tuple[tuple[int, tuple[int, int]] | None, int]:
        """The first match from a place on, as its end and what was captured, and the steps left.
        Of those that begin together it is the one that the expression prefers."""
        threads: list[_Thread] = []
        match: tuple[int, tuple[int, int]] | None = None
        for place in range(at, len(text) + 1):
            if match is None:
                threads.append((0, -1, -1))
            elif not threads:
                break
            seen: set[int] = set()
            following: list[_Thread] = []
            for thread in threads:
                stack = [thread]
                while stack:
                    number, start, stop = stack.pop()
                    if number in seen:
                        continue
                    seen.add(number)
                    steps -= 1
                    if steps < 0:
                        raise TooSlow
                    code = self._code[number]
                    if code.kind == "match":
                        match = place, (start, stop)
                        break
                    if code.kind == "split":
                        stack.append((number + code.second, start, stop))
                        stack.append((number + code.first, start, stop))
                    elif code.kind == "save":
                        ends = (place, stop) if code.first == 0 else (start, place)
                        stack.append((number + 1, *ends))
                    elif code.test is not None and code.test(text, place):
                        if code.kind == "char":
                            following.append((number + 1, start, stop))
                        else:
                            stack.append((number + 1, start, stop))
                else:
                    continue
                break  # what comes after it is preferred less
            threads = following
        return match, steps


class _Compiler:
    """From an expression to its code."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._captures = 0
        body = self._either()
        if self._at < len(text):
            raise ValueError("it has a ) without a (")
        if not self._captures:
            body = _captured(body)
        self.code = [*body, _Code("match")]

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        found = self._peek(text)
        self._at += len(text) if found else 0
        return found

    def _either(self) -> list[_Code]:
        ways = [self._sequence()]
        while self._take("|"):
            ways.append(self._sequence())
        found = ways.pop()
        while ways:
            one = ways.pop()
            over = _Code("split", first=len(found) + 1, second=len(found) + 1)
            found = [_Code("split", first=1, second=len(one) + 2), *one, over, *found]
        return _checked(found)

    def _sequence(self) -> list[_Code]:
        found: list[_Code] = []
        while self._at < len(self._text) and not self._peek("|") and not self._peek(")"):
            found = _checked([*found, *self._repeated(self._atom())])
        return found

    def _atom(self) -> list[_Code]:
        if self._take("("):
            captures = not self._take("?:")
            if captures and self._peek("?"):
                raise ValueError("it has a group that begins with (?; only (?: is known")
            self._captures += captures
            if self._captures > 1:
                raise ValueError("it has several groups; write (?: for all but one")
            body = self._either()
            if not self._take(")"):
                raise ValueError("it has a ( without a )")
            return _captured(body) if captures else body
        for written, known in _ZERO_WIDTH.items():
            if self._take(written):
                return [_Code("place", re.compile(known).match)]
        return [_Code("char", self._character().match)]

    def _character(self) -> re.Pattern[str]:
        """What stands for one character. Python's own matcher decides which ones fit: of a single
        one that takes no time."""
        start = self._at
        if self._text[start] in "*+?{":
            raise ValueError(f"it repeats nothing at character {start}; write \\ before the sign")
        self._at += 2 if self._text[start] == "\\" else 1
        if self._text[start] == "[":
            self._at = _end_of_class(self._text, start)
        written = self._text[start : self._at]
        if re.fullmatch(r"\\[1-9]", written):
            raise ValueError(f"it has the reference {written}, which is not known here")
        try:
            return re.compile(written)
        except (re.error, OverflowError) as error:
            raise ValueError(f"{written!r} stands for no character ({error})") from None

    def _repeated(self, body: list[_Code]) -> list[_Code]:
        """What was just read, as often as what stands behind it says."""
        braces = _REPEAT.match(self._text, self._at)
        if braces is not None:
            self._at = braces.end()
            least = int(braces[1])
            most = least if braces[2] is None else int(braces[3]) if braces[3] else None
        elif self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        else:
            return body
        if most is not None and most < least:
            raise ValueError(f"it has a repeat from {least} to {most}")
        lazy = self._take("?")
        if any(self._peek(sign) for sign in "*+?") or _REPEAT.match(self._text, self._at):
            raise ValueError("it has a repeat of a repeat; write (?: ) around the inner one")
        times = least if most is None else most
        if len(body) * max(times, 1) > MOST_CODE:
            raise ValueError(_TOO_LARGE)
        found = body * least
        if most is None:
            return _checked([*found, *_optional([*body, _Code("split", first=0, second=0)], lazy)])
        for _ in range(most - least):
            found = [*found, *_optional(body, lazy)]
        return _checked(found)


_TOO_LARGE = f"its repeats make it too large (more than {MOST_CODE} parts)"


def _optional(body: list[_Code], lazy: bool) -> list[_Code]:
    """A part that may be left out. One that ends in an empty jump goes back to its beginning."""
    if body and body[-1].kind == "split" and body[-1].first == 0:
        body = [*body[:-1], _Code("split", first=-len(body), second=-len(body))]
    into, past = 1, len(body) + 1
    return [_Code("split", first=past if lazy else into, second=into if lazy else past), *body]


def _captured(body: list[_Code]) -> list[_Code]:
    return [_Code("save", first=0), *body, _Code("save", first=1)]


def _checked(code: list[_Code]) -> list[_Code]:
    if len(code) > MOST_CODE:
        raise ValueError(_TOO_LARGE)
    return code


def _end_of_class(text: str, start: int) -> int:
    """Behind the ] of the class that begins at a place."""
    at = start + 1
    at += text.startswith("^", at)
    at += text.startswith("]", at)  # which stands for itself there
    while at < len(text):
        if text[at] == "]":
            return at + 1
        at += 2 if text[at] == "\\" else 1
    raise ValueError("it has a [ without a ]")
