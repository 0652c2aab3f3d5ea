"""What an answer must look like, under the names of vLLM."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from ockham.core.errors import InvalidRequest

MAX_GRAMMAR_BYTES = 1 << 18
"""Of a schema, expression, list of choices or grammar."""
MAX_DEPTH = 128
"""Of the objects and arrays of a schema."""
_INTEGERS = range(-(2**63), 2**64)
_WHITE_SPACE = re.compile(
    r"(?:\\[ntr ]|\\x(?:20|0[9aAdD])|[ \t\n\r()\[\]|?*+]|\{\d{0,4}(?:,\d{0,4})?\})*"
)
"""Expressions that match nothing but JSON's white space."""
_KINDS: dict[str, tuple[type, ...]] = {
    "json": (str, dict),
    "json_object": (bool,),
    "regex": (str,),
    "choice": (list,),
    "grammar": (str,),
}
_NAME = "structured_outputs"


class StructuredOutputsParams(
    msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Exactly one of: a JSON schema (`json`, as an object or as text), any JSON object
    (`json_object`), a regular expression for the whole text (`regex`), a list of texts of which one
    is the answer (`choice`), or a context-free grammar in Lark's or GBNF's notation (`grammar`).

    `disable_any_whitespace` allows JSON no white space but what its strings hold;
    `whitespace_pattern` is a regular expression for what may stand between its tokens, in place of
    a default that has bounds. Raises InvalidRequest for anything else; what a schema or grammar
    means is not looked at here.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return self._given()[0]

    @property
    def key(self) -> bytes:
        """What tells two of them apart. The order of a schema's properties is part of it."""
        return msgspec.json.encode(self)

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            what = " and ".join(given) if given else "nothing"
            raise InvalidRequest(
                f"{_NAME} must hold exactly one of {', '.join(_KINDS)}; it holds {what}.", _NAME
            )
        kind, value = given[0], getattr(self, given[0])
        if not isinstance(value, _KINDS[kind]):
            raise InvalidRequest(f"{_NAME}.{kind} cannot be {type(value).__name__}.", _NAME)
        if not value and kind != "json":
            raise InvalidRequest(f"{_NAME}.{kind} must not be empty.", _NAME)
        self._check_white_space(kind)
        if self.regex is not None:
            _check_regex(self.regex)
        if isinstance(self.json, str):
            self._check_json(self.json)
        elif self.json is not None:
            _check_values(self.json)
        self._check_choice()
        self._check_size()

    def schema(self) -> str:
        """The JSON schema as text."""
        if self.json is None:
            return '{"type": "object"}'
        return self.json if isinstance(self.json, str) else json.dumps(self.json)

    def _given(self) -> list[str]:
        return [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]

    @staticmethod
    def _check_json(text: str) -> None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{_NAME}.json is no valid JSON ({error}).", _NAME) from None
        if not isinstance(found, dict):
            raise InvalidRequest(
                f"{_NAME}.json must be a JSON object, got {type(found).__name__}.", _NAME
            )
        _check_values(found)

    def _check_white_space(self, kind: str) -> None:
        for name in ("disable_any_whitespace", "whitespace_pattern"):
            if getattr(self, name) not in (None, False) and kind not in ("json", "json_object"):
                raise InvalidRequest(
                    f"{_NAME}.{name} is for JSON only; leave it out with {kind}.", _NAME
                )
        pattern = self.whitespace_pattern
        if pattern is None:
            return
        if self.disable_any_whitespace:
            raise InvalidRequest(
                f"{_NAME} holds both disable_any_whitespace and whitespace_pattern; send one of "
                "them.",
                _NAME,
            )
        if not _WHITE_SPACE.fullmatch(pattern):
            raise InvalidRequest(
                f"{_NAME}.whitespace_pattern must match nothing but spaces, tabs and line ends, "
                f"got {pattern[:40]!r}; write it with \\n, \\t, \\r, spaces, groups and "
                "quantifiers, as in '[ \\n]{0,2}'.",
                _NAME,
            )

    def _check_choice(self) -> None:
        for text in self.choice or ():
            if not isinstance(text, str) or not text:
                raise InvalidRequest(
                    f"{_NAME}.choice must hold texts that are not empty, got {text!r}.", _NAME
                )

    def _check_size(self) -> None:
        try:
            size = len(self.key)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"{_NAME} cannot be written as JSON ({error}).", _NAME) from None
        if size > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(
                f"{_NAME} has {size} bytes, at most {MAX_GRAMMAR_BYTES}; make it smaller.", _NAME
            )


def _check_regex(regex: str) -> None:
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise InvalidRequest(
            f"{_NAME}.regex ends with a backslash that escapes nothing; write two for a backslash.",
            _NAME,
        )


def _check_values(root: dict[str, Any]) -> None:
    """Refuse what would be too deep for those that read it, and numbers that they do not have."""
    waiting: list[tuple[Any, int]] = [(root, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, (dict, list, tuple)):
            if depth > MAX_DEPTH:
                raise InvalidRequest(
                    f"{_NAME}.json is nested more than {MAX_DEPTH} deep; make it flatter, for "
                    "example with $defs and $ref.",
                    _NAME,
                )
            inside = value.values() if isinstance(value, dict) else value
            waiting += [(each, depth + 1) for each in inside]
        elif isinstance(value, int) and value not in _INTEGERS:
            raise InvalidRequest(
                f"{_NAME}.json holds an integer of {value.bit_length()} bits; at most 64 are "
                "supported.",
                _NAME,
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"{_NAME}.json holds {value}, which is no number of JSON.", _NAME)
