"""What an answer must look like, under the names of vLLM."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import check_json, shown

MAX_GRAMMAR_BYTES = 1 << 18
"""Of a schema, expression, list of choices or grammar."""
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
    a default that has bounds. `within` is a grammar in llguidance's notation of which a `regex`,
    `choice` or `grammar` is the rule `answer`: chats have the thought in it. Raises InvalidRequest
    for anything else; what a schema or grammar means is not looked at here.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    within: str | None = None

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
            self._check_length(len(self.json))  # before it is parsed
        if self.json is not None:
            found = self._parse(self.json) if isinstance(self.json, str) else self.json
            check_json(found, f"{_NAME}.json", _NAME)
        self._check_choice()
        if self.within is not None and kind in ("json", "json_object"):
            raise InvalidRequest(f"{_NAME}.within is not for JSON; leave it out.", _NAME)
        self._check_size()

    def schema(self) -> str:
        """The JSON schema as text."""
        if self.json is None:
            return '{"type": "object"}'
        return self.json if isinstance(self.json, str) else json.dumps(self.json)

    def _given(self) -> list[str]:
        return [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]

    @staticmethod
    def _parse(text: str) -> Any:
        if len(text) > MAX_GRAMMAR_BYTES:  # before each of them is looked at
            raise InvalidRequest(
                f"{_NAME}.json has {len(text)} characters, at most {MAX_GRAMMAR_BYTES}; make it "
                "smaller.",
                _NAME,
            )
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{_NAME}.json is no valid JSON ({error}).", _NAME) from None
        if not isinstance(found, dict):
            raise InvalidRequest(
                f"{_NAME}.json must be a JSON object, got {type(found).__name__}.", _NAME
            )
        return found

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
                f"got {shown(pattern)}; write it with \\n, \\t, \\r, spaces, groups and "
                "quantifiers, as in '[ \\n]{0,2}'.",
                _NAME,
            )

    def _check_choice(self) -> None:
        for text in self.choice or ():
            if not isinstance(text, str) or not text:
                raise InvalidRequest(
                    f"{_NAME}.choice must hold texts that are not empty, got {shown(text)}.", _NAME
                )

    def _check_size(self) -> None:
        try:
            size = len(self.key)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"{_NAME} cannot be written as JSON ({error}).", _NAME) from None
        self._check_length(size)

    @staticmethod
    def _check_length(size: int) -> None:
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
