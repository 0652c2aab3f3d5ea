"""What an engine has by names that its settings give: `named`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.numbers import shown

_NAME = re.compile(r"[\w-]{1,64}")


def named(kind: str, what: str, given: str | Mapping[str, str]) -> Mapping[str, str]:
    """What is named by "NAME=WHAT", by a JSON object, or by a mapping. Raises ConfigError."""
    found = given if not isinstance(given, str) else _read(kind, what, given)
    for name, value in found.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(value, str):
            raise ConfigError(
                f"{kind}s map names (letters, digits, - and _) to text, got {shown(name)}: "
                f"{shown(value)}."
            )
    return found


def _read(kind: str, what: str, given: str) -> dict[str, str]:
    if given.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(given, type=dict[str, str])
        except msgspec.DecodeError as error:
            raise ConfigError(f"{kind}s are no JSON object of text ({error}).") from None
    name, equals, value = (part.strip() for part in given.partition("="))
    if not equals:
        raise ConfigError(f"the {kind} {shown(given)} has no {what.lower()}; write NAME={what}.")
    return {name: value}
