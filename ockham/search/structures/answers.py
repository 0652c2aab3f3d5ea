"""Answers: what of a text is compared with what others say."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from ockham.core.numbers import shown
from ockham.text.pattern import Pattern, TooSlow

MOST_ANSWER = 1000
"""Characters of an answer that are compared."""
LINE, NUMBER, CHOICE, TEXT, JSON = "last line", "last number", "choice", "text", "json"
BEHAVIOUR = "behaviour"
"""Not read from a text: what its program does (see `structures.readings`)."""
NAMES = (NUMBER, LINE, CHOICE, TEXT, f"{JSON}:FIELD", BEHAVIOUR)
"""What an extractor may be, beside a regular expression."""
_MOST_DIGITS = 300
"""Of a number that is written out; a larger or smaller one keeps its exponent."""
_MOST_BRACES = 64
"""Opening braces of a text at which its JSON object is looked for, the last first."""
_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+\u2212])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))"
    r"(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?:/[0-9]+)?"
)
_CHOICE = re.compile(
    r"(?<![A-Za-z0-9])(?:\(([A-J])\)|(A(?!\s+[a-z])|[B-HJ]|I(?=\s*(?:[.):]|$)))(?![A-Za-z0-9']))"
)


def check_extract(extract: str) -> str | None:
    """Why an extractor cannot be used; None if it can."""
    if extract in (LINE, NUMBER, CHOICE, TEXT, BEHAVIOUR) or extract.startswith(f"{JSON}:"):
        empty = extract.startswith(f"{JSON}:") and not all(extract.partition(":")[2].split("."))
        return f"extract is {shown(extract)}, whose field has no name." if empty else None
    if not extract or extract.lower() in (LINE, NUMBER, CHOICE, TEXT, BEHAVIOUR):
        names = ", ".join(NAMES)
        return f"extract is {shown(extract)}; it must be one of {names}, or an expression."
    try:
        Pattern(extract)
    except ValueError as reason:
        return f"extract is {shown(extract)}, which cannot be used: {reason}."
    return None


class Reader:
    """Finds the answer of a text, or None.

    `extract` is "last number" (written alike: "1,000" and "1000.0" are one answer), "last line",
    "choice" (the last capital letter from A to J that stands alone, and is no word), "text" (all of
    it, without regard to case and space), "json:FIELD" (of the last object in the text; "json:a.b"
    looks in the object of "a"), or a regular expression, whose group captures the answer where it
    matches last.
    An expression that takes too long on one text is not tried on another: whoever sends a hostile
    one takes 50 ms once.
    """

    def __init__(self, extract: str) -> None:
        self._extract = extract
        named = extract in (LINE, NUMBER, CHOICE, TEXT) or extract.startswith(f"{JSON}:")
        self._pattern = None if named else Pattern(extract)

    def __call__(self, text: str) -> str | None:
        found = self._find(text)
        return found.strip()[:MOST_ANSWER] if found and found.strip() else None

    def _find(self, text: str) -> str | None:
        if self._extract == NUMBER:
            numbers = _NUMBER.findall(text)
            return _plain(numbers[-1]) if numbers else None
        if self._extract == LINE:
            return next((line for line in reversed(text.splitlines()) if line.strip()), None)
        if self._extract == CHOICE:
            letters = _CHOICE.findall(text)
            return "".join(letters[-1]) if letters else None
        if self._extract == TEXT:
            return " ".join(text.casefold().split())
        if self._extract.startswith(f"{JSON}:"):
            return _field(text, self._extract.partition(":")[2].split("."))
        if self._pattern is not None:
            try:
                return self._pattern.last(text)
            except TooSlow:
                self._pattern = None
        return None


def _plain(number: str) -> str:
    """A number without what does not change it."""
    number = number.replace(",", "").replace("\u2212", "-").removeprefix("+")
    if "/" in number:
        return number
    try:
        value = Decimal(number)
    except InvalidOperation:
        return number
    if value.is_zero():
        return "0"
    plain = value.normalize()
    return format(plain, "f") if abs(plain.adjusted()) < _MOST_DIGITS else str(plain)


def _field(text: str, path: list[str]) -> str | None:
    """What the last JSON object of a text has at a path, as JSON with its keys in order."""
    decoder = json.JSONDecoder()
    starts = [place for place, letter in enumerate(text) if letter == "{"][-_MOST_BRACES:]
    for start in reversed(starts):
        try:
            value: Any = decoder.raw_decode(text, start)[0]
            for name in path:
                value = value[name]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return None
