"""Tools, calls and results written as text, for chat templates that show none.

The words are those of Hermes's template, which most models have seen. Answers come back in that
format: see `formats.HERMES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ockham.text.chat_messages import text_of

_HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TAIL = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def spell(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Checked messages (see `chat_messages.check_messages`) with everything of tools as text."""
    told: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        content = message.get("content")
        said = "" if content is None else text_of(content)
        calls = message.get("tool_calls")
        is_result = message["role"] == "tool"
        if is_result:
            result = f"<tool_response>\n{said}\n</tool_response>"
            if after_result:  # templates want turns: results that follow each other are one
                told[-1]["content"] += "\n" + result
            else:
                told.append({"role": "user", "content": result})
        elif calls:
            written = "\n".join(_call(call) for call in calls)
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            told.append({**kept, "content": f"{said}\n{written}" if said else written})
        else:
            told.append(dict(message))
        after_result = is_result
    if tools:
        _add_tools(told, tools)
    return told


def tell(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    words: tuple[str, str, str],
) -> list[dict[str, Any]]:
    """Checked messages with the tools in a format's own words."""
    before, each, behind = words
    listed = ""
    for tool in tools:
        function = tool["function"]
        said = {
            "{name}": str(function["name"]),
            "{description}": str(function.get("description") or ""),
            "{parameters}": json.dumps(function.get("parameters") or {}, ensure_ascii=False),
        }
        listed += re.sub("|".join(map(re.escape, said)), partial(_said, said), each)
    told = [dict(message) for message in messages]
    if tools:
        _add_to_system(told, f"{before}{listed}{behind}")
    return told


def _said(said: Mapping[str, str], found: re.Match[str]) -> str:
    return said[found[0]]


def _add_tools(told: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> None:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    _add_to_system(told, f"{_HEAD}{listed}{_TAIL}")


def _add_to_system(told: list[dict[str, Any]], text: str) -> None:
    if told and told[0]["role"] == "system":
        before = told[0].get("content")
        said = "" if before is None else text_of(before)
        told[0]["content"] = f"{said}\n\n{text}" if said else text
    else:
        told.insert(0, {"role": "system", "content": text})


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    said = {"name": function.get("name", ""), "arguments": function.get("arguments") or {}}
    return f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"
