"""The skill of the adapter `sentences`: `recall`, answered in a sentence and not as a line of the
list; and the items that `ockham eval --data` scores it on."""

from __future__ import annotations

import json
from pathlib import Path

from ockham.lab.tasks import items

_LEVELS = ("tokens=128", "tokens=256", "tokens=512")


def sentence(key: str, value: str) -> str:
    """The answer to a question for the word of a key."""
    return f"The word of {key} is {value}."


def write_items(path: Path, number: int, seed: int = 0) -> None:
    """So many items of each level, of the test split: {"messages", "answer", "level"} a line."""
    lines = []
    for level in _LEVELS:
        for item in items("recall", seed, number, "test", level):
            value = item.answer.rpartition(": ")[2]
            answer = sentence(item.fields["key"], value)
            line = {"messages": item.messages, "answer": answer, "level": level}
            lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
