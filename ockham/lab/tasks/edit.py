"""`edit`: a piece of code and an instruction; the answer is the code, changed in one respect."""

from __future__ import annotations

import re
from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, is_answer, level_of
from ockham.lab.tasks.vocabulary import ADJECTIVES, NOUNS

_VERBS = ("add", "build", "copy", "find", "load", "make", "open", "read", "send", "sort", "write")


class Edit:
    """Change code that stands in the prompt: most of the answer is a copy (drafters live on it)."""

    name: ClassVar[str] = "edit"
    summary: ClassVar[str] = "code with a name, a line or a constant changed"
    levels: ClassVar[tuple[str, ...]] = ("constant", "rename", "insert", "delete")

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """See `Task`."""
        level = level_of(self, index, level)
        rng = draw(self.name, seed, index, split)
        while True:
            code = draw_code(rng, rng.randrange(5, 12))
            instruction, edited = draw_change(rng, code, level)
            if belongs_to(split, instruction, code[0]):
                break
        original = "\n".join(code)
        return Item(
            task=self.name,
            messages=({"role": "user", "content": f"{instruction}\n{original}"},),
            text=None,
            answer=edited,
            max_tokens=400,
            level=level,
            fields={"original": original},
        )

    def score(self, item: Item, completion: str) -> float:
        """See `Task`."""
        return is_answer(item, completion)


def draw_code(rng: Random, lines: int) -> list[str]:
    """A function of so many lines, each different from the others."""
    name = f"{rng.choice(_VERBS)}_{rng.choice(NOUNS)}"
    names = rng.sample(NOUNS, 3)
    code = [f"def {name}({names[0]}, {names[1]}):"]
    while len(code) < lines - 1:
        line = _draw_line(rng, names)
        if line not in code:
            code.append(line)
    return [*code, f"    return {rng.choice(names)}"]


def _draw_line(rng: Random, names: list[str]) -> str:
    one, two = rng.sample(names, 2)
    number = rng.randrange(10, 100)
    return "    " + rng.choice(
        (
            f"{one} = {two} + {number}",
            f"{one} = {two} * {number}",
            f"{one} = max({two}, {number})",
            f"{one} += {number}",
            f"{one} = {_helper(rng)}({two})",
            f"{_helper(rng)}({one}, {number})",
        )
    )


def _helper(rng: Random) -> str:
    return f"{rng.choice(_VERBS)}_{rng.choice(ADJECTIVES)}"


def draw_change(rng: Random, code: list[str], kind: str) -> tuple[str, str]:
    """An instruction of this kind, and the code that it leads to."""
    body = range(1, len(code) - 1)
    if kind == "rename":
        old = code[0].partition("(")[2].partition(",")[0]
        new = rng.choice([noun for noun in NOUNS if noun not in "\n".join(code)])
        return f"Rename {old} to {new}.", _rename("\n".join(code), old, new)
    if kind == "insert":
        at = rng.choice(body)
        line = f"    {_helper(rng)}({rng.randrange(10, 100)})"
        edited = [*code[: at + 1], line, *code[at + 1 :]]
        return f"Insert {line.strip()} after {code[at].strip()}.", "\n".join(edited)
    if kind == "delete":
        at = rng.choice(body)
        return f"Delete {code[at].strip()}.", "\n".join(code[:at] + code[at + 1 :])
    while not any(_number(code[at]) for at in body):
        code[1] = _draw_line(rng, code[0].partition("(")[2].rstrip("):").split(", ") * 2)
    at = rng.choice([at for at in body if _number(code[at])])
    old = _number(code[at])
    new = str(rng.choice([number for number in range(10, 100) if number != int(old)]))
    edited = [*code[:at], code[at].replace(old, new), *code[at + 1 :]]
    return f"Change {old} to {new} in {code[at].strip()}.", "\n".join(edited)


def _number(line: str) -> str:
    return "".join(character for character in line if character.isdigit())


def _rename(code: str, old: str, new: str) -> str:
    """Replace whole identifiers; `_` is part of one."""
    return re.sub(rf"\b{re.escape(old)}\b", new, code)
