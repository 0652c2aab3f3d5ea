"""Tools of this protocol as functions, and back.

A model only calls functions with arguments in JSON. A custom tool, which takes any text, is shown
to it as a function with one argument, `input`; a tool in a namespace as a function with both names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

DEFAULT_NAMESPACE = "functions"
"""Tools in it go by their own names."""


class Offered(msgspec.Struct, frozen=True):
    """One tool, as the caller knows it."""

    name: str
    namespace: str | None
    custom: bool
    """Whether it takes a text rather than arguments."""
    where: str
    """Its place in the request."""


class Toolbox:
    """The tools of a request. `functions` are what the model is offered; `skipped` names those that
    only run at OpenAI."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raises `InvalidRequest` for a tool that cannot be read."""
        self.functions: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self._offered: list[Offered] = []
        self._by_name: dict[str, Offered] = {}
        for index, tool in enumerate(tools):
            self._add(tool, f"tools[{index}]", None)

    def __getitem__(self, name: str) -> Offered:
        """The tool that the model calls by a name; a function, if there is none."""
        return self._by_name.get(name) or Offered(name, None, False, "tools")

    @property
    def places(self) -> list[str]:
        """Where each function stands in the request."""
        return [offered.where for offered in self._offered]

    def choice(self, choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
        """`tool_choice` as chat completions have it. Raises `InvalidRequest`."""
        if not isinstance(choice, Mapping):
            return choice
        kind = choice.get("type")
        if kind in ("function", "custom"):
            return self._named(choice)
        if kind == "allowed_tools":
            listed = choice.get("tools")
            kept = [
                self._named(each)
                for each in (listed if isinstance(listed, list) else ())
                if isinstance(each, Mapping) and each.get("type") in ("function", "custom")
            ]
            allowed = {"mode": choice.get("mode"), "tools": kept}
            return {"type": "allowed_tools", "allowed_tools": allowed}
        raise InvalidRequest(
            f"tool_choice is of the type {shown(kind)}; a function, a custom tool or allowed_tools "
            "can be chosen: other tools do not run here.",
            "tool_choice",
        )

    def _named(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        name, namespace = choice.get("name"), choice.get("namespace")
        if isinstance(name, str) and isinstance(namespace, str):
            name = flat_name(namespace, name)
        return {"type": "function", "function": {"name": name}}

    def _add(self, tool: Mapping[str, Any], where: str, namespace: str | None) -> None:
        kind = tool.get("type", "function")
        if kind == "namespace" and namespace is None:
            name, inner = tool.get("name"), tool.get("tools")
            if not isinstance(name, str) or not isinstance(inner, list):
                raise InvalidRequest(f"{where} must have a name and a list of tools.", where)
            for index, each in enumerate(inner):
                place = f"{where}.tools[{index}]"
                if not isinstance(each, Mapping):
                    raise InvalidRequest(f"{place} must be an object, got {shown(each)}.", place)
                self._add(each, place, name)
        elif kind in ("function", "custom"):
            self._offer(tool, where, namespace, kind == "custom")
        else:
            self.skipped.append(f"{where} ({shown(kind)[1:-1]})")

    def _offer(
        self, tool: Mapping[str, Any], where: str, namespace: str | None, custom: bool
    ) -> None:
        inner = tool.get("function")
        told = inner if isinstance(inner, Mapping) else tool  # as chat completions have it
        name = told.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(
                f"{where}.name must be a text, got {shown(name)}.", f"{where}.name"
            )
        flat = flat_name(namespace, name)
        function = {"name": flat, **(_of_custom(tool) if custom else _of_function(told))}
        offered = Offered(name, namespace, custom, where)
        self.functions.append({"type": "function", "function": function})
        self._offered.append(offered)
        self._by_name[flat] = offered


def flat_name(namespace: str | None, name: str) -> str:
    """What a tool of a namespace is called by the model."""
    if not namespace or namespace == DEFAULT_NAMESPACE:
        return name
    return f"{namespace.rstrip('_')}__{name.lstrip('_')}"


def _of_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    known = ("description", "parameters", "strict")
    return {name: tool[name] for name in known if tool.get(name) is not None}


def _of_custom(tool: Mapping[str, Any]) -> dict[str, Any]:
    description = tool.get("description") or ""
    form = tool.get("format")
    if isinstance(form, Mapping) and isinstance(form.get("definition"), str):
        syntax = form.get("syntax")
        language = syntax if isinstance(syntax, str) else "given"
        description = (
            f"{description}\n\nThe input must follow this {language} grammar:\n{form['definition']}"
        ).strip()
    parameters = {
        "type": "object",
        "properties": {"input": {"type": "string", "description": "The whole input."}},
        "required": ["input"],
        "additionalProperties": False,
    }
    return {"description": description, "parameters": parameters}


_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_CHARACTERS = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})*"
)


class InputReader:
    """Reads the text that a custom tool gets from its arguments, `{"input": "..."}`, while they
    come."""

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._said: list[str] = []
        self._rest = ""
        """What has come and cannot be read yet."""
        self._begun = self._ended = False

    def feed(self, arguments: str) -> str:
        """What is new of the text with the next piece of the arguments."""
        self._arguments.append(arguments)
        self._rest += arguments
        if not self._begun:
            opening = _OPENING.match(self._rest)
            if opening is None:
                return ""
            self._begun, self._rest = True, self._rest[opening.end() :]
        if self._ended:
            return ""
        found = _CHARACTERS.match(self._rest)
        assert found is not None, "it may be empty"
        self._rest = self._rest[found.end() :]
        self._ended = self._rest.startswith('"')
        said = _whole(json.loads(f'"{found[0]}"', strict=False))
        self._said.append(said)
        return said

    @property
    def text(self) -> str:
        """The text that all of the arguments hold."""
        said, whole = "".join(self._said), text_for_custom("".join(self._arguments))
        return whole if whole.startswith(said) else said

    def finish(self) -> str:
        """What is left of it at the arguments' end."""
        return self.text[sum(map(len, self._said)) :]


def text_for_custom(arguments: str) -> str:
    """The text that a custom tool gets from a call's arguments: `input`, or the only text among
    them, or all of them as they are."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    if isinstance(found, dict):
        texts = [found["input"]] if "input" in found else list(found.values())
        if len(texts) == 1 and isinstance(texts[0], str):
            return _whole(texts[0])
    return arguments


def _whole(text: str) -> str:
    """A text without halves of characters."""
    return text.encode(errors="replace").decode()
