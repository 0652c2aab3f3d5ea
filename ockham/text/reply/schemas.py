"""The tools that a request offers: checked, and what their schemas say of arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import check_json, shown
from ockham.text.reply.values import quoted

MOST_TOOLS = 1024
_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,256}")
_MOST_REFERENCES = 32
"""Of a schema to another, followed one after the other."""
_PYTHON = {"True": True, "False": False, "None": None}
_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools as plain data: `{"type": "function", "function": {"name", ...}}`. Raises
    InvalidRequest for anything else."""
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise InvalidRequest(f"tools must be a list, got {type(tools).__name__}.", "tools")
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(f"tools has {len(tools)} entries, at most {MOST_TOOLS}.", "tools")
    checked = [_check_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in checked]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"two tools have the name {shown(name)}; rename one.", "tools")
    return checked


def _check_tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise InvalidRequest(
            f'{where} must be an object, {{"type": "function", "function": {{...}}}}, got '
            f"{shown(tool)}.",
            where,
        )
    kind, function = tool.get("type", "function"), tool.get("function")
    if kind != "function":
        raise InvalidRequest(
            f"{where} has the type {shown(kind)}; only tools of type 'function' are supported, "
            "which the caller runs.",
            f"{where}.type",
        )
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"{where} has no function.", f"{where}.function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.function.name must have 1 to 256 letters, digits, '_', '-', '.' or ':', got "
            f"{shown(name)}.",
            f"{where}.function.name",
        )
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(
            f"{where}.function.parameters must be a JSON schema, got {shown(parameters)}.",
            f"{where}.function.parameters",
        )
    if not isinstance(function.get("description", ""), (str, type(None))):
        raise InvalidRequest(
            f"{where}.function.description must be a text.", f"{where}.function.description"
        )
    check_json(tool, where, where)
    told = {key: value for key, value in function.items() if value is not None}
    # Templates expect a description and an object's schema.
    told = {"name": name, "description": "", **told}
    told["parameters"] = dict(parameters or {"type": "object", "properties": {}})
    return {**tool, "type": "function", "function": told}


class Tools:
    """What is known of the tools that an answer may call."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """`tools` as `check_tools` gives them."""
        self._schemas = {
            tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools
        }
        self._types: dict[tuple[str, str], frozenset[str]] = {}

    def has(self, name: str) -> bool:
        return name in self._schemas

    def is_text(self, name: str, key: str) -> bool:
        """Whether an argument is a text, whatever it looks like."""
        return self.types(name, key) <= {"string"}

    def as_json(self, name: str, key: str, raw: str) -> str:
        """An argument that was written without quotes, as JSON of a type that its schema allows; as
        a text if it is of none."""
        types, text = self.types(name, key), raw.strip()
        try:
            value = _PYTHON[text] if text in _PYTHON else json.loads(text)
        except (ValueError, RecursionError):
            return quoted(raw)
        kind = _TYPES[type(value)]
        if isinstance(value, float):
            if not -1e308 < value < 1e308:
                return quoted(raw)
            if value.is_integer() and "number" not in types:
                value, kind = int(value), "integer"
        if kind in types or (kind == "integer" and "number" in types):
            return json.dumps(value, ensure_ascii=False)
        return quoted(raw)

    def types(self, name: str, key: str) -> frozenset[str]:
        """The types that an argument may have; none if its schema does not say."""
        found = self._types.get((name, key))
        if found is None:
            schema = self._schemas.get(name, {})
            properties = _resolved(schema, schema).get("properties")
            part = properties.get(key) if isinstance(properties, Mapping) else None
            found = self._types[name, key] = frozenset(_types_of(part, schema, 0))
        return found


def _types_of(part: Any, whole: Mapping[str, Any], depth: int) -> set[str]:
    if not isinstance(part, Mapping) or depth > _MOST_REFERENCES:
        return set()
    part = _resolved(part, whole)
    declared = part.get("type")
    found = {declared} if isinstance(declared, str) else set()
    if isinstance(declared, list):
        found |= {each for each in declared if isinstance(each, str)}
    for union in ("anyOf", "oneOf", "allOf"):
        branches = part.get(union)
        for branch in branches if isinstance(branches, list) else []:
            found |= _types_of(branch, whole, depth + 1)
    listed = part.get("enum") if isinstance(part.get("enum"), list) else []
    for value in [*(listed or []), *([part["const"]] if "const" in part else [])]:
        if declared is None:
            found.add(_TYPES.get(type(value), "string"))
    if found and part.get("nullable") is True:
        found.add("null")
    return found


def _resolved(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that `part` refers to, if it refers to one within `whole`."""
    for _ in range(_MOST_REFERENCES):
        reference = part.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        found: Any = whole
        for step in reference[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            break
        part = found
    return part
