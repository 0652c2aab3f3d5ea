"""`chat`: questions and follow-ups over several turns, about what was said."""

from __future__ import annotations

from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, is_answer, level_of
from ockham.lab.tasks.vocabulary import ADJECTIVES, CITIES, JOBS, NOUNS, invented_name

Turn = tuple[str, str]


class Chat:
    """Keep to a conversation: its facts, and what was asked and answered in it."""

    name: ClassVar[str] = "chat"
    summary: ClassVar[str] = "a follow-up question in a conversation"
    levels: ClassVar[tuple[str, ...]] = ("turns=2", "turns=4", "turns=6")

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """See `Task`. The turns before the last one are answered rightly."""
        level = level_of(self, index, level)
        rng = draw(self.name, seed, index, split)
        while True:
            turns = draw_turns(rng, int(level.partition("=")[2]))
            if belongs_to(split, turns[0], turns[-1]):
                break
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        return Item(
            task=self.name,
            messages=tuple(messages[:-1]),
            text=None,
            answer=turns[-1][1],
            max_tokens=24,
            level=level,
        )

    def score(self, item: Item, completion: str) -> float:
        """See `Task`."""
        return is_answer(item, completion)


def draw_turns(rng: Random, number: int) -> list[Turn]:
    """A conversation: first something is told, then asked about."""
    name, city, job = invented_name(rng), rng.choice(CITIES), rng.choice(JOBS)
    things = rng.sample(NOUNS, 4)
    told = [
        (f"My name is {name}.", f"Hello {name}."),
        (f"I live in {city}.", f"{city} is nice."),
        (f"I am a {job}.", f"A {job} has much to do."),
        (f"I like {things[0]}, {things[1]}, {things[2]} and {things[3]}.", "I see."),
    ]
    known = rng.sample(range(4), max(1, number // 2))
    turns = [told[topic] for topic in known]
    while len(turns) < number:
        turns.append(_follow_up(rng, rng.choice(known), name, city, job, things, turns))
    return turns


def _follow_up(
    rng: Random, topic: int, name: str, city: str, job: str, things: list[str], turns: list[Turn]
) -> Turn:
    form = rng.randrange(4)
    if form == 0:
        word = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        return f"Say {word}.", f"{word}."
    if form == 1:
        return "What did I say first?", turns[0][0]
    place = rng.randrange(4)
    return (
        ("What is my name?", f"{name}."),
        ("Where do I live?", f"{city}."),
        ("What is my job?", f"{job}."),
        (
            f"What is the {('first', 'second', 'third', 'fourth')[place]} thing I like?",
            f"{things[place]}.",
        ),
    )[topic]
