"""Requests of the shape that Codex CLI (0.171.0) sends to a provider that is not OpenAI.

A session sends all items so far with each request: instructions as a message of the developer,
tools that stay, what it says of its surroundings, the user's words, then calls and their outputs.
The texts are made up.
"""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = """file patch test build error module function return value plan step review change line
path commit branch shell output command sandbox approval network read write search only user message
answer short clear before after never always should must keep check run small large"""


def prose(seed: int, words: int) -> str:
    """Sentences that stand for an agent's instructions."""
    draw, known = random.Random(seed), WORDS.split()
    lines = []
    while words > 0:
        count = draw.randint(6, 16)
        words -= count
        lines.append("- " + " ".join(draw.choices(known, k=count)).capitalize() + ".")
    return "\n".join(lines)


def _function(name: str, **properties: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": prose(len(name), 30),
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {
                key: {"type": kind, "description": prose(len(key), 10)}
                for key, kind in properties.items()
            },
            "required": [next(iter(properties))],
            "additionalProperties": False,
        },
    }


TOOLS: list[dict[str, Any]] = [
    _function("exec_command", cmd="string", workdir="string", yield_time_ms="number"),
    _function("write_stdin", session_id="number", chars="string"),
    _function("update_plan", explanation="string"),
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files. The patch is not wrapped in JSON.",
        "format": {
            "type": "grammar",
            "syntax": "lark",
            "definition": 'start: "*** Begin Patch" LF hunk+ "*** End Patch"\nhunk: /.+/ LF\n',
        },
    },
    {
        "type": "namespace",
        "name": "mcp__docs__",
        "description": "Tools in the mcp__docs__ namespace.",
        "tools": [_function("lookup", query="string")],
    },
    {"type": "web_search", "external_web_access": False},
]


class CodexSession:
    """One conversation. `body` is the next request; `took` takes in its answer."""

    def __init__(self, model: str, task: str, *, instructions_words: int) -> None:
        self._model = model
        self.items: list[dict[str, Any]] = [
            _message("developer", prose(7, instructions_words)),
            _message("developer", f"<permissions>\n{prose(8, 60)}\n</permissions>"),
            _message(
                "user",
                "<environment_context>\n  <cwd>/home/me/project</cwd>\n  <shell>bash</shell>\n"
                "</environment_context>",
            ),
            _message("user", task),
        ]

    def body(self, **more: Any) -> dict[str, Any]:
        return {
            "model": self._model,
            "input": self.items,
            "tools": TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
            "client_metadata": {"x-codex-installation-id": "1"},
            **more,
        }

    def took(self, text: str, outputs: list[str]) -> dict[str, Any]:
        """Take in the events of an answer; each call of it gets the next of `outputs`. Returns the
        usage."""
        events = [
            json.loads(line.removeprefix("data: "))
            for line in text.splitlines()
            if line.startswith("data: ")
        ]
        (done,) = [each["response"] for each in events if each["type"] == "response.completed"]
        calls = []
        for each in events:
            if each["type"] == "response.output_item.done":
                item = each["item"]
                self.items.append({**item, "content": None} if "summary" in item else item)
                if item["type"] in ("function_call", "custom_tool_call"):
                    calls.append(item)
        for call, output in zip(calls, outputs, strict=True):
            kind = f"{call['type']}_output"
            self.items.append({"type": kind, "call_id": call["call_id"], "output": output})
        usage: dict[str, Any] = done["usage"]
        return usage


def _message(role: str, text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}
