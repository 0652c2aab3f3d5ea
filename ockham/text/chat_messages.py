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


def results_within(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with what tools answered within the message that called them, as
    `tool_responses`, and what the assistant said then as its content, if it has none: for templates
    that show a call, its result and the answer as one turn (Gemma 4). An answer that is a JSON
    object is given as one."""
    made: list[dict[str, Any]] = []
    calling: dict[str, Any] | None = None
    for message in messages:
        calls = message.get("tool_calls")
        if message.get("role") == "tool" and calling is not None:
            calling.setdefault("tool_responses", []).append(_response(message, calling))
        elif (
            message.get("role") == "assistant"
            and calling is not None
            and "tool_responses" in calling
            and not calls
            and not calling.get("content")
        ):
            calling["content"] = message.get("content")
            calling = None
        else:
            made.append(dict(message))
            calling = made[-1] if calls else None
    return made


def _response(message: Mapping[str, Any], calling: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool answered: `{"name": ..., "response": ...}`, with the name of the function whose
    call has the message's id, or whose place it is."""
    functions = [
        (call.get("id"), function.get("name"))
        for call in calling["tool_calls"]
        if isinstance(function := call.get("function"), Mapping)
    ]
    named = [name for key, name in functions if key and key == message.get("tool_call_id")]
    place = len(calling["tool_responses"])
    in_order = [name for _, name in functions[place : place + 1]]
    content = message.get("content")
    text = "" if content is None else text_of(content)
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    name = next((each for each in (*named, message.get("name"), *in_order) if each), "unknown")
    return {"name": name, "response": parsed if isinstance(parsed, dict) else text}


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
