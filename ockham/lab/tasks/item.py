"""What a task asks: items that are drawn from a seed, and the program that scores an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal, Protocol

from ockham.core.errors import ConfigError

Split = Literal["train", "test"]
Count = Callable[[str], int]

TEST_SHARE = 8
"""One fact in so many belongs to the test items."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer, or one text whose perplexity is measured."""

    task: str
    messages: tuple[dict[str, str], ...]
    """A chat that ends with the user's turn; empty for a text, and where there is a prompt."""
    text: str | None
    answer: str
    """A right answer, as the model should write it; "" for a text."""
    max_tokens: int
    """Room for the answer and the end of the turn."""
    level: str
    """What scores are broken down by."""
    prompt: str | None = None
    """Plain text that the answer continues, in place of a chat."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the scorer needs beside the answer: plain JSON values."""


class Task(Protocol):
    """A skill, and how it is measured."""

    name: ClassVar[str]
    summary: ClassVar[str]
    levels: ClassVar[tuple[str, ...]]

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """The item number `index`: a pure function of the arguments.

        Items of the two splits are never the same. `level` None takes the levels in turn. `count`
        counts tokens, for items of a given length; without it a token is taken for three
        characters. Raises ConfigError for a level that the task does not have.
        """
        ...

    def score(self, item: Item, completion: str) -> float:
        """1.0 for a right answer, 0.0 for any other. Raises ConfigError for a text."""
        ...


def draw(task: str, seed: int, index: int, split: Split) -> Random:
    """The generator that an item is drawn from."""
    return Random(f"{task} {split} {seed} {index}")


def level_of(task: Task, index: int, level: str | None) -> str:
    """The level asked for, or the levels in turn."""
    if level is None:
        return task.levels[index % len(task.levels)]
    if level not in task.levels:
        raise ConfigError(
            f"the task {task.name!r} has no level {level!r}; it has {'; '.join(task.levels)}."
        )
    return level


def belongs_to(split: Split, *fact: object) -> bool:
    """Whether what decides an answer may be asked in this split: a fact belongs to one of them."""
    digest = hashlib.sha256("\0".join(map(str, fact)).encode()).digest()
    return (digest[0] % TEST_SHARE == 0) == (split == "test")


def mostly_tested(split: Split, *fact: object) -> bool:
    """The same where no model is trained on a task: most facts are for tests."""
    return belongs_to("train" if split == "test" else "test", *fact)


def count_roughly(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand."""
    return len(text) // 3


def is_answer(item: Item, completion: str) -> float:
    """Whether the completion is the answer, apart from space around it."""
    return float(completion.strip() == item.answer.strip())
