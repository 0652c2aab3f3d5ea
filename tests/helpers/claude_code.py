"""Requests of the shape that Claude Code sends, made from what is public of it.

Each turn sends the whole conversation again: a system prompt in blocks whose first is a line of
accounting that changes each time, the tools, reminders within the user's first message, calls of
tools with their results, a countdown of tokens behind each result, and marks for the cache at the
system prompt and at the last block.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

TOOLS = (
    ("Bash", "Executes a command in a persistent shell and returns its output.", ("command",)),
    ("Read", "Reads a file of the local file system.", ("file_path", "offset", "limit")),
    ("Edit", "Replaces a text in a file exactly.", ("file_path", "old_string", "new_string")),
    ("Write", "Writes a file, whether it exists or not.", ("file_path", "content")),
    ("Glob", "Finds files whose paths match a pattern.", ("pattern", "path")),
    ("Grep", "Searches the contents of files for an expression.", ("pattern", "path", "glob")),
    ("Task", "Gives a task of several steps to another agent.", ("description", "prompt")),
    ("TodoWrite", "Keeps the list of what is to be done.", ("todos",)),
    ("WebFetch", "Fetches a page and answers a question about it.", ("url", "prompt")),
    ("NotebookEdit", "Replaces a cell of a notebook.", ("notebook_path", "new_source")),
    ("BashOutput", "Returns the output of a shell that runs in the background.", ("bash_id",)),
    ("KillShell", "Ends a shell that runs in the background.", ("shell_id",)),
    ("ExitPlanMode", "Tells that the plan is written and may be judged.", ("plan",)),
    ("AskUserQuestion", "Asks the user a question while working.", ("question", "options")),
    ("Skill", "Runs a skill by its name.", ("skill", "args")),
)
GUIDANCE = (
    "You help with software. Keep answers short. Read a file before you change it. Never guess "
    "what a command prints. Run the tests after each change, and say what failed. "
)


def tools(guidance: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {
            "name": name,
            "description": f"{what} {guidance}",
            "input_schema": {
                "type": "object",
                "properties": {field: {"type": "string"} for field in fields},
                "required": [fields[0]],
                "additionalProperties": False,
            },
        }
        for name, what, fields in TOOLS
    ]
    return [*made, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]


class Session:
    """One conversation. `ask` sends a turn and takes in its answer."""

    def __init__(self, post: Callable[[dict[str, Any]], dict[str, Any]], model: str, size: int):
        """`post` sends a body and gives the message that came back. `size` says how much text the
        system prompt has: so many times the guidance."""
        self._post = post
        self._model = model
        self._number = 0
        self._left = 15_000_000
        self._system = GUIDANCE * size
        self._tools = tools(GUIDANCE * (size // 30))
        self.messages: list[dict[str, Any]] = []

    def begin(self, task: str) -> None:
        remind = "<system-reminder>\nThe project's notes:\n# Notes\nUse make.\n</system-reminder>\n"
        self.messages.append(
            {"role": "user", "content": [text(remind), text(task, cache_control=MARK)]}
        )

    def results(self, answer: dict[str, Any], result: str) -> None:
        """Take in an answer that calls tools, and what these gave."""
        self.messages.append({"role": "assistant", "content": answer["content"]})
        content = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": result}
            for block in answer["content"]
            if block["type"] == "tool_use"
        ]
        self.messages.append({"role": "user", "content": content})
        self._left -= 4567
        countdown = f"<total_tokens>{self._left} tokens left</total_tokens>"
        self.messages.append({"role": "system", "content": countdown})

    def ask(self, **more: Any) -> dict[str, Any]:
        self._number += 1
        header = "x-anthropic-billing-header: cc_version=2.1.280.{:03x}; cc_entrypoint=cli; cch={};"
        accounting = header.format(self._number * 77, f"{self._number * 74565:05x}"[-5:])
        return self._post(
            {
                "model": self._model,
                "max_tokens": 32_000,
                "system": [
                    text(accounting),
                    text("You are an agent for the command line.", cache_control=MARK),
                    text(self._system, cache_control=MARK),
                ],
                "tools": self._tools,
                "messages": marked(self.messages),
                "metadata": {"user_id": "user_0_account__session_0"},
                "thinking": {"type": "adaptive"},
                "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
                **more,
            }
        )


MARK = {"type": "ephemeral", "ttl": "1h"}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a mark for the cache at the last block that can have one, and no other."""
    copied: list[dict[str, Any]] = json.loads(json.dumps(messages))
    blocks = [b for m in copied if isinstance(m["content"], list) for b in m["content"]]
    for block in blocks:
        block.pop("cache_control", None)
    blocks[-1]["cache_control"] = MARK
    return copied
