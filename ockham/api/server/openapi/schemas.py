"""JSON schemas of the messages, with what msgspec does not know of them.

The fields' docstrings become descriptions. A field that is accepted at some values only, because
it asks for nothing there (`neutral`), is one of the type's properties with those values.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ockham.api.server.asking import NAMED, TakesAsks, with_asks
from ockham.api.server.fields import ANY
from ockham.api.server.synonyms import SYNONYMS
from ockham.core.registry import asks_at, modules_of_techniques

REFERENCE = "#/components/schemas/{name}"
Schema = dict[str, Any]


def whole(kind: Any) -> Any:
    """A request's type with every field that a technique adds to it."""
    if not (isinstance(kind, type) and issubclass(kind, TakesAsks)):
        return kind
    beside = (ask.settings() for seam in NAMED for ask in asks_at(seam).values())
    return with_asks(kind, modules_of_techniques().union(*beside))


def schemas_of(
    kinds: Iterable[Any], requests: Iterable[Any], *, lenient: Iterable[Any], open_fields: bool
) -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each of the types `kinds`, and those that they refer to, by name.

    Of `requests` fields may be null, and have neutral values; to the types in `lenient`, and with
    `open_fields` to all requests, fields may be added that they do not know.
    """
    kinds, requests, lenient = list(kinds), list(requests), list(lenient)
    found, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    taken, added = set(_structs(requests)), set(_structs(lenient))
    for kind in _structs(kinds):
        # Of two types with one name msgspec names both by where they are.
        place = re.sub(r"[^a-zA-Z0-9.\-_]", "_", f"{kind.__module__}.{kind.__qualname__}")
        schema = components.get(place) or components.get(kind.__name__)
        if schema is None or schema.get("type") != "object":
            continue
        _describe(schema, kind)
        if kind in taken:
            _widen(schema, kind)
            if open_fields or kind in added:
                schema.pop("additionalProperties", None)
    for schema in [*components.values(), *found]:
        _simplify(schema)
    return list(found), components


def _structs(kinds: Iterable[Any]) -> Iterator[type]:
    """The struct types among types and whatever these are made of, each once."""
    seen: set[type] = set()

    def walk(info: Any) -> Iterator[type]:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                return
            seen.add(info.cls)
            yield info.cls
            for field in info.fields:
                yield from walk(field.type)
        for name in ("types", "item_types"):
            for each in getattr(info, name, ()):
                yield from walk(each)
        for name in ("item_type", "value_type", "type"):
            below = getattr(info, name, None)
            if isinstance(below, msgspec.inspect.Type):
                yield from walk(below)

    for info in msgspec.inspect.multi_type_info(list(kinds)):
        yield from walk(info)


def _describe(schema: Schema, kind: type) -> None:
    """Put the docstrings of a type's fields into its schema."""
    for base in reversed(kind.__mro__):
        for name, text in _docstrings(base).items():
            if name in schema.get("properties", {}):
                described = schema["properties"][name]
                described.setdefault("description", text)
    if kind.__doc__:
        schema["description"] = " ".join(kind.__doc__.split())


def _docstrings(kind: type) -> dict[str, str]:
    """Field -> the docstring under it in the source. Empty where there is no source."""
    if not kind.__module__.startswith("ockham."):
        return {}
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}  # made at run time, or without its source
    found: dict[str, str] = {}
    body = getattr(tree, "body", [])
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found


def _widen(schema: Schema, kind: type) -> None:
    """Add the fields that are accepted at values that ask for nothing, and other servers' names."""
    table: dict[str, tuple[Any, ...]] = getattr(kind, "neutral", {})
    properties = schema.setdefault("properties", {})
    for name, values in table.items():
        if name in properties:
            continue
        if ANY in values:
            properties[name] = {"description": "Changes nothing."}
        else:
            properties[name] = {
                "enum": [None, *values],
                "description": "Of other servers: accepted at values that ask for nothing.",
            }

    if getattr(kind, "has_synonyms", False):
        for name in SYNONYMS:
            properties.setdefault(
                name, {"description": "Of other servers: taken for what it means here."}
            )


def _simplify(schema: Any) -> None:
    """Leave out that a field that may be left out is null then."""
    if isinstance(schema, dict):
        if "default" in schema and schema["default"] is None:
            del schema["default"]
        for each in schema.values():
            _simplify(each)
    elif isinstance(schema, list):
        for each in schema:
            _simplify(each)
