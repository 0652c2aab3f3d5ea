"""`arithmetic`: short calculations, asked for in English."""

from __future__ import annotations

from random import Random
from typing import ClassVar

from ockham.lab.tasks.answers import last_word
from ockham.lab.tasks.item import Count, Item, Split, draw, level_of, mostly_tested

_SHOWN = 4
"""Calculations that are answered before, of the same level."""


class Arithmetic:
    """One calculation in English, after answers to others. The first line of a completion must end
    with the result."""

    name: ClassVar[str] = "arithmetic"
    summary: ClassVar[str] = "a short calculation in English"
    levels: ClassVar[tuple[str, ...]] = (
        "add, most=9",
        "add, most=20",
        "multiply, most=15",
        "multiply, most=20",
    )

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
        kind, _, most = level.partition(", most=")
        shown = [_drawn(rng, kind, int(most), "train") for _ in range(_SHOWN)]
        asked, answer, result = _drawn(rng, kind, int(most), split)
        turns = [*(turn for question, said, _ in shown for turn in (question, said)), asked]
        return Item(
            task=self.name,
            messages=tuple(
                {"role": "assistant" if place % 2 else "user", "content": turn}
                for place, turn in enumerate(turns)
            ),
            text=None,
            answer=answer,
            max_tokens=24,
            level=level,
            fields={"result": str(result)},
        )

    def score(self, item: Item, completion: str) -> float:
        """Whether the first line ends with the result."""
        return float(last_word(completion) == item.fields["result"])


def _drawn(rng: Random, kind: str, most: int, split: Split) -> tuple[str, str, int]:
    """A question of a split, the sentence that answers it, and its result."""
    while True:
        one, other = rng.randint(2, most), rng.randint(2, most)
        if mostly_tested(split, kind, one, other):
            break
    word, result = ("plus", one + other) if kind == "add" else ("times", one * other)
    said = f"{one} {word} {other}"
    return f"What is {said}?", f"{said} is {result}.", result
