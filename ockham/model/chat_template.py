"""Rendering chat messages to one prompt with a checkpoint's Jinja template.

The conventions are those of Hugging Face's `apply_chat_template`, which templates are written for:
a sandbox, `trim_blocks` and `lstrip_blocks`, loop controls, `tojson` without HTML escapes, and the
functions `raise_exception` and `strftime_now`. Nothing here knows about tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import check_json, shown

if TYPE_CHECKING:
    from jinja2 import Template

MAX_TEMPLATE_CHARACTERS = 1 << 20


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt that `template` makes of `messages`.

    `variables` are further names that the template may use (`bos_token`, `enable_thinking`, ...).
    Raises InvalidRequest if the messages are malformed, or the template is, or refuses them.
    """
    from jinja2 import TemplateError

    conversation = check_messages(messages)
    given = {
        **(variables or {}),
        "messages": conversation,
        "tools": list(tools) if tools else None,
        "add_generation_prompt": add_generation_prompt,
    }
    given.setdefault("documents", None)
    try:
        return _compile(template).render(given)
    except TemplateError as error:
        reason = str(error).rstrip(".")
        raise InvalidRequest(
            f"The chat template refuses these messages: {reason}.", "messages"
        ) from (error)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InvalidRequest(
            f"The chat template failed on these messages ({type(error).__name__}: {error}); "
            "check their fields, or give another template with chat_template.",
            "messages",
        ) from error


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain dictionaries whose content is text, as templates expect them.

    Content may be a string, None (an assistant that only calls tools), or a list of text parts,
    which are joined by line breaks as in vLLM. Arguments of tool calls that are JSON text become
    objects. Raises InvalidRequest for anything else.
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


def _check_message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(
            f"messages[{index}] must be an object with role and content, got {shown(message)}.",
            "messages",
        )
    checked = dict(message)
    role = checked.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(
            f"messages[{index}] has no role; use 'system', 'user', 'assistant' or 'tool'.",
            "messages",
        )
    if checked.get("tool_calls"):
        checked["tool_calls"] = [_parse_arguments(call, index) for call in checked["tool_calls"]]
    elif checked.get("content") is None:
        raise InvalidRequest(f"messages[{index}] has no content.", "messages")
    checked["content"] = _content_text(checked.get("content"), index)
    return checked


def _content_text(content: Any, index: int) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequest(
            f"the content of messages[{index}] must be a string or a list of text parts, "
            f"got {type(content).__name__}.",
            "messages",
        )
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"messages[{index}] has a content part of type {shown(kind)}; only text parts, "
                '{"type": "text", "text": ...}, are supported.',
                "messages",
            )
        texts.append(part["text"])
    return "\n".join(texts)


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
            raise InvalidRequest(
                f"messages[{index}] has a tool call whose arguments are not JSON: {error}.",
                "messages",
            ) from error
        check_json(arguments, f"messages[{index}].tool_calls", "messages")
        parsed["function"] = {**function, "arguments": arguments}
    return parsed


@lru_cache(maxsize=32)
def _compile(template: str) -> Template:
    """Parse a template. jinja2 is imported late: plain completion never pays its 50 ms."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidRequest(
            f"the chat template has {len(template)} characters, at most {MAX_TEMPLATE_CHARACTERS}.",
            "chat_template",
        )

    class Generation(Extension):
        """`{% generation %}` marks what the assistant wrote, for training; here it is only text."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    environment.globals.update(functions)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequest(
            f"The chat template is not valid Jinja (line {error.lineno}: {error.message}).",
            "chat_template",
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
