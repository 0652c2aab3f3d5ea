"""`extraction`: a sentence, and what it says as JSON."""

from __future__ import annotations

import json
from random import Random
from typing import Any, ClassVar

from ockham.lab.tasks.english import COLOURS, FIRST_NAMES, MONTHS
from ockham.lab.tasks.item import Count, Item, Split, draw, level_of, mostly_tested
from ockham.lab.tasks.vocabulary import ANIMALS, CITIES, JOBS

_SHOWN = 2
"""Sentences that are answered before, of the same keys."""

_KEYS = ("name", "age", "job", "city", "month", "colour", "animal")
_PHRASES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "age": ("is {} years old", "turned {} last week"),
    "job": ("works as a {}", "earns a living as a {}"),
    "city": ("lives in {}", "has a flat in {}", "moved to {}"),
    "month": ("goes on holiday in {}", "was born in {}"),
    "colour": ("drives a {} car", "likes to wear {}"),
    "animal": ("keeps a {}", "has a {} at home"),
}
"""What is said of each key; the first names whom the others are about."""


class Extraction:
    """Say as JSON what a sentence says about a person. The completion must be an object equal to
    the right one: the order of keys and white space do not matter."""

    name: ClassVar[str] = "extraction"
    summary: ClassVar[str] = "what a sentence says, as JSON"
    levels: ClassVar[tuple[str, ...]] = ("fields=3", "fields=4", "fields=5", "fields=7")

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
        others = rng.sample(_KEYS[1:], int(level.partition("=")[2]) - 1)
        keys = [key for key in _KEYS if key == "name" or key in others]
        shown = [_drawn(rng, keys, "train") for _ in range(_SHOWN)]
        sentence, found = _drawn(rng, keys, split)
        asked = f"Write {', '.join(keys)} as JSON."
        turns = [t for told, said in shown for t in (f"{asked} {told}", json.dumps(said))]
        return Item(
            task=self.name,
            messages=tuple(
                {"role": "assistant" if place % 2 else "user", "content": turn}
                for place, turn in enumerate([*turns, f"{asked} {sentence}"])
            ),
            text=None,
            answer=json.dumps(found),
            max_tokens=96,
            level=level,
            fields={"object": found},
        )

    def score(self, item: Item, completion: str) -> float:
        """Whether the completion is JSON that means the same."""
        try:
            return float(bool(json.loads(completion) == item.fields["object"]))
        except ValueError:
            return 0.0


def _drawn(rng: Random, keys: list[str], split: Split) -> tuple[str, dict[str, Any]]:
    """A sentence of a split, and what it says of each key."""
    while True:
        values: dict[str, Any] = {
            "name": rng.choice(FIRST_NAMES),
            "age": rng.randrange(18, 90),
            "job": rng.choice(JOBS),
            "city": rng.choice(CITIES),
            "month": rng.choice(MONTHS),
            "colour": rng.choice(COLOURS),
            "animal": rng.choice(ANIMALS),
        }
        found = {key: values[key] for key in keys}
        said = [rng.choice(_PHRASES[key]).format(values[key]) for key in keys[1:]]
        rng.shuffle(said)
        *first, last = said
        sentence = f"{values['name']} {', '.join(first)} and {last}."
        if mostly_tested(split, sentence):
            return sentence, found
