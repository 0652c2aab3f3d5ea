"""The messages of a chat: checked, and in the form that a chat template shows.

Templates were written for content of two forms: a string, or a list of parts,
`{"type": "text", "text": ...}`. Nothing here knows about Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import check_json

Form = Literal["string", "part", "parts"]
"""Content as text, as a list of one text part, or as a list of several."""

Content = str | list[dict[str, str]]


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain dictionaries, their content a string, a list of text parts, or None
    beside tool calls.

    Arguments of tool calls that are JSON text become objects, as templates expect them. Raises
    InvalidRequest for anything else.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequest(
            'messages must be a list of {"role": ..., "content": ...} objects, '
            f"got {type(messages).__name__}.",
            "messages",
        )
    if not messages:
        raise InvalidRequest("messages must not be empty.", "messages")
    return [_check_message(message, index) for index, message in enumerate(messages)]


def text_of(content: Content) -> str:
    """Content as one text: its parts are joined by line breaks, as in vLLM."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def in_form(content: Content, form: Form) -> Content:
    """The same text in another form."""
    if form == "string":
        return text_of(content)
    if form == "part" or isinstance(content, str):
        return [{"type": "text", "text": text_of(content)}]
    return content


def forms_for(content: Content) -> tuple[Form, ...]:
    """The forms that content may take, the best first: a template that shows strings gets one, also
    if it would show parts, so that a text gives the same tokens however it was sent."""
    several = not isinstance(content, str) and len(content) > 1
    return ("string", "parts", "part") if several else ("string", "part")


def _check_message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(
            f"messages[{index}] must be an object with role and content, got {message!r:.200}.",
            "messages",
        )
    checked = dict(message)
    role = checked.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(
            f"messages[{index}] has no role; use 'system', 'user', 'assistant' or 'tool'.",
            "messages",
        )
    calls, content = checked.get("tool_calls"), checked.get("content")
    if calls:
        if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Sequence):
            raise InvalidRequest(f"tool_calls of messages[{index}] must be a list.", "messages")
        checked["tool_calls"] = [_parse_arguments(call, index) for call in calls]
    elif content is None:
        raise InvalidRequest(f"messages[{index}] has no content.", "messages")
    checked["content"] = None if content is None else _check_content(content, index)
    return checked


def _check_content(content: Any, index: int) -> Content:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequest(
            f"the content of messages[{index}] must be a string or a list of text parts, "
            f"got {type(content).__name__}.",
            "messages",
        )
    parts = []
    for part in content:
        text = part
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            text = part.get("text") if isinstance(part, Mapping) else None
            if kind != "text" or not isinstance(text, str):
                raise InvalidRequest(
                    f"messages[{index}] has a content part of type {kind!r:.200}; only text parts, "
                    '{"type": "text", "text": ...}, are supported.',
                    "messages",
                )
        parts.append({"type": "text", "text": text})
    return parts or ""


def _parse_arguments(call: Any, index: int) -> dict[str, Any]:
    """A tool call whose arguments are an object: OpenAI sends text, templates expect an object."""
    if not isinstance(call, Mapping):
        raise InvalidRequest(
            f"messages[{index}] has a tool call that is not an object.", "messages"
        )
    parsed = dict(call)
    function = parsed.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError) as error:
            reason = "they are nested too deeply" if isinstance(error, RecursionError) else error
            raise InvalidRequest(
                f"messages[{index}] has a tool call whose arguments are not JSON: {reason}.",
                "messages",
            ) from error
        check_json(arguments, f"messages[{index}].tool_calls", "messages")
        parsed["function"] = {**function, "arguments": arguments}
    return parsed
