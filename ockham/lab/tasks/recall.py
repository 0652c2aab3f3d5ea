"""`recall`: a list of keys and words, then a question for one of them."""

from __future__ import annotations

from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import (
    Count,
    Item,
    Split,
    belongs_to,
    count_roughly,
    draw,
    is_answer,
    level_of,
)
from ockham.lab.tasks.vocabulary import ADJECTIVES, NOUNS

INTRODUCTION = "Remember these.\n"
TEMPLATE_TOKENS = 24
"""What the chat template and the question take, about."""


class Recall:
    """Find one word among hundreds, at any depth of the context (the needle test)."""

    name: ClassVar[str] = "recall"
    summary: ClassVar[str] = "one key's word from a list of keys"
    levels: ClassVar[tuple[str, ...]] = (
        "tokens=128",
        "tokens=256",
        "tokens=512",
        "tokens=1000",
        "tokens=2000",
        "tokens=4000",
    )

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """See `Task`. The prompt is as long as the level says, or a little shorter."""
        level = level_of(self, index, level)
        rng = draw(self.name, seed, index, split)
        facts = draw_facts(rng, int(level.partition("=")[2]) - TEMPLATE_TOKENS, count)
        allowed = [key for key in facts if belongs_to(split, key, facts[key])]
        if not allowed:  # of a short list, make one of the facts one that may be asked
            key = rng.choice(list(facts))
            while not belongs_to(split, key, facts[key]):
                facts[key] = draw_value(rng)
            allowed = [key]
        asked = rng.choice(allowed)
        content = f"{describe_facts(facts)}\n{question(asked)}"
        depth = list(facts).index(asked) / len(facts)
        return Item(
            task=self.name,
            messages=({"role": "user", "content": content},),
            text=None,
            answer=line(asked, facts[asked]),
            max_tokens=24,
            level=level,
            fields={"key": asked, "depth": round(depth, 3)},
        )

    def score(self, item: Item, completion: str) -> float:
        """See `Task`."""
        return is_answer(item, completion)


def draw_value(rng: Random) -> str:
    """A word, of one token in the lab model's tokenizer."""
    return rng.choice(NOUNS)


def draw_facts(rng: Random, tokens: int, count: Count | None) -> dict[str, str]:
    """Keys and their words, as many as take about so many tokens; at least two."""
    count = count or count_roughly
    facts: dict[str, str] = {}
    taken = count(INTRODUCTION)
    while True:
        key = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        if key in facts:
            continue
        value = draw_value(rng)
        taken += count(f"{line(key, value)}\n")
        if taken > tokens and len(facts) >= 2:
            return facts
        facts[key] = value


def line(key: str, value: str) -> str:
    """A line of the list, which is also the answer."""
    return f"- {key}: {value}"


def describe_facts(facts: dict[str, str]) -> str:
    """The list as it stands in the prompt."""
    return INTRODUCTION + "".join(f"{line(key, value)}\n" for key, value in facts.items())


def question(key: str) -> str:
    """What is asked."""
    return f"Which line is this?\n- {key}"
