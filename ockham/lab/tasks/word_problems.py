"""`word_problems`: short stories in English with a number to be found, for models that know the
language."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, level_of
from ockham.lab.tasks.vocabulary import words

_NAMES = words("Alice Anna Ben Clara Daniel Emma Frank Grace Henry Julia Lucy Martin Nora Oscar")
_THINGS = words(
    """apples balls books boxes buttons cakes candles cards coins cookies eggs flowers marbles
    oranges pencils shells stamps stickers tickets toys"""
)
_SHOWN = 4
"""Problems that are answered before, of the same level: small models learn the form from them."""
ANSWER = r"answer is \$?([0-9,]+)\.?"
_ANSWER = re.compile(f"{ANSWER}$")


class WordProblems:
    """One or two steps of arithmetic told as a story, after answers to others. The first line
    of a completion must end like those."""

    name: ClassVar[str] = "word_problems"
    summary: ClassVar[str] = "a story with a calculation of one or two steps, and its result"
    levels: ClassVar[tuple[str, ...]] = (
        *("one step, most=5", "one step, most=9", "one step, most=20"),
        *("two steps, most=5", "two steps, most=9"),
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
        steps, _, most = level.partition(", most=")
        stories = _ONE_STEP if steps == "one step" else _TWO_STEPS
        shown = [_told(rng, stories, int(most), "train") for _ in range(_SHOWN)]
        story, answer, result = _told(rng, stories, int(most), split)
        turns = [*(turn for asked, said, _ in shown for turn in (asked, said)), story]
        return Item(
            task=self.name,
            messages=tuple(
                {"role": "assistant" if place % 2 else "user", "content": turn}
                for place, turn in enumerate(turns)
            ),
            text=None,
            answer=answer,
            max_tokens=80,
            level=level,
            fields={"result": str(result)},
        )

    def score(self, item: Item, completion: str) -> float:
        """Whether the first line ends with the result, as the examples do."""
        found = _ANSWER.search(completion.strip().partition("\n")[0])
        return float(found is not None and found[1].replace(",", "") == item.fields["result"])


Story = tuple[str, str, int]
"""What is told, how it is worked out, and the result."""
_Teller = Callable[[Random, int], Story]


def _told(rng: Random, stories: Sequence[_Teller], most: int, split: Split) -> Story:
    """A problem of a split, and its answer as it is to be written."""
    while True:
        story, working, result = rng.choice(stories)(rng, most)
        if belongs_to(split, story):
            return story, f"{working} The answer is {result}.", result


def _gets(rng: Random, most: int) -> Story:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = rng.randint(2, most), rng.randint(2, most)
    told = f"{name} has {a} {thing}. {name} buys {b} more. How many {thing} does {name} have now?"
    return told, f"{a} + {b} = {a + b}.", a + b


def _gives(rng: Random, most: int) -> Story:
    name, other, thing = *rng.sample(_NAMES, 2), rng.choice(_THINGS)
    a, b = sorted(rng.sample(range(1, most + 1), 2), reverse=True)
    told = (
        f"{name} has {a} {thing}. {name} gives {b} {thing} to {other}. How many {thing} are left?"
    )
    return told, f"{a} - {b} = {a - b}.", a - b


def _times(rng: Random, most: int) -> Story:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = rng.randint(2, min(most, 9)), rng.randint(2, most)
    told = f"{name} has {a} bags with {b} {thing} in each. How many {thing} does {name} have?"
    return told, f"{a} * {b} = {a * b}.", a * b


def _gets_and_gives(rng: Random, most: int) -> Story:
    name, other, thing = *rng.sample(_NAMES, 2), rng.choice(_THINGS)
    a, b = rng.randint(2, most), rng.randint(2, most)
    c = rng.randrange(1, a + b)
    told = (
        f"{name} has {a} {thing} and finds {b} more. Then {name} gives {c} {thing} to {other}. How "
        f"many {thing} does {name} have left?"
    )
    return told, f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}.", a + b - c


def _times_and_gets(rng: Random, most: int) -> Story:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b, c = rng.randint(2, min(most, 9)), rng.randint(2, most), rng.randint(2, most)
    told = (
        f"{name} has {a} bags with {b} {thing} in each, and {c} more {thing} in a box. How many "
        f"{thing} does {name} have in all?"
    )
    return told, f"{a} * {b} = {a * b}. {a * b} + {c} = {a * b + c}.", a * b + c


_ONE_STEP: tuple[_Teller, ...] = (_gets, _gives, _times)
_TWO_STEPS: tuple[_Teller, ...] = (_gets_and_gives, _times_and_gets)
