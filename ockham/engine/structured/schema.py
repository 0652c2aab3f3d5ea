"""What a JSON schema may ask for, beside what the library of grammars itself refuses.

An answer always follows its schema. What could not be kept is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords whose value is an object of schemas by name."""
_DATA = frozenset({"const", "enum", "default", "example", "examples"})
"""Keywords whose value is data."""
_OF_OLD = {
    "extends": "allOf",
    "disallow": "other types",
    "divisibleBy": "multipleOf",
}
"""Keywords of drafts that the library does not know, and what takes their place."""
_OVERLAPPING = "oneOf constraints are not supported"
"""How the library refuses alternatives of which several may hold at once."""


def check(text: str) -> None:
    """Raise ValueError for a schema that the library would take, and not keep."""
    for schema in _schemas(json.loads(text)):
        if "x-guidance" in schema:
            raise ValueError(
                "x-guidance is no keyword of JSON Schema here; for white space there are "
                "whitespace_pattern and disable_any_whitespace, beside the schema"
            )
        for keyword, instead in _OF_OLD.items():
            if keyword in schema:
                raise ValueError(f"the keyword {keyword} is not supported; use {instead}")
        for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(schema.get(keyword), bool):
                raise ValueError(f"{keyword} must be a number, not {schema[keyword]}")
        if isinstance(schema.get("additionalItems"), Mapping) and schema["additionalItems"]:
            raise ValueError(
                "additionalItems is supported as true or false only; use prefixItems and items"
            )
        _check_count(schema)


def explain(reason: str) -> str:
    """The library's reason in words that help."""
    if _OVERLAPPING in reason:
        return (
            "several options of a oneOf may hold at once; use anyOf, or tell the options apart by "
            "their types or by a required property with another const in each"
        )
    return reason


def _check_count(schema: Mapping[str, Any]) -> None:
    """The library counts the keys that were written, and a key may be written twice unless it is
    listed under `properties`."""
    least = schema.get("minProperties")
    if not isinstance(least, (int, float)) or isinstance(least, bool):
        return
    listed = set(_strings(schema.get("properties"))) | set(_strings(schema.get("required")))
    others = schema.get("additionalProperties", True) is not False
    others = others or bool(schema.get("patternProperties"))
    if others and least > len(listed) + 1:
        raise ValueError(
            f"minProperties {least} cannot be kept where keys are free, for a free key may come "
            f"twice; list the keys under properties and required, or ask for at most "
            f"{len(listed) + 1}"
        )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, (Mapping, list)):
        yield from (each for each in value if isinstance(each, str))


def _schemas(root: object) -> Iterator[Mapping[str, Any]]:
    """All objects that stand where a schema may stand, or be referred to."""
    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:
        value, named = waiting.pop()
        if isinstance(value, list):
            waiting += [(each, False) for each in value]
        elif isinstance(value, Mapping):
            if not named:
                yield value
            for key, each in value.items():
                if named or key not in _DATA:
                    waiting.append((each, not named and key in _NAMED))
