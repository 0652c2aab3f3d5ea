"""`documents`: short documents about people, in any order, and a question about one of them, or
about two of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, is_answer, level_of
from ockham.lab.tasks.vocabulary import (
    ANIMALS,
    CITIES,
    JOBS,
    RELATIONS,
    invented_name,
)

START = "Answer: "
"""What an answer begins with, so that a name has a space before it there as in the documents."""


@dataclass(frozen=True, slots=True)
class Person:
    """What one document tells."""

    name: str
    city: str
    job: str
    animal: str
    relation: str
    other: str
    """Who is this person's `relation`: someone with a document of their own."""

    def describe(self) -> str:
        """The document."""
        return (
            f"{self.name} lives in {self.city}. {self.name} works as a {self.job}. "
            f"{self.name} has a {self.animal}. The {self.relation} of {self.name} is {self.other}."
        )


class Documents:
    """Answer from documents that may stand in any order: what reuse of chunks must not break."""

    name: ClassVar[str] = "documents"
    summary: ClassVar[str] = "a question that one document, or two together, answers"
    levels: ClassVar[tuple[str, ...]] = (
        "documents=2",
        "documents=4",
        "documents=8",
        "documents=4, hops=2",
        "documents=8, hops=2",
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
        number = int(level.partition(",")[0].partition("=")[2])
        while True:
            people = draw_people(rng, number)
            asked, answer = draw_question(rng, people, hops=2 if "hops" in level else 1)
            if belongs_to(split, asked, answer):
                break
        return Item(
            task=self.name,
            messages=({"role": "user", "content": f"{describe_people(people)}\n{asked}"},),
            text=None,
            answer=answer,
            max_tokens=64,
            level=level,
            fields={"documents": [person.describe() for person in people], "question": asked},
        )

    def score(self, item: Item, completion: str) -> float:
        """See `Task`."""
        return is_answer(item, completion)


def returning_items(seed: int, number: int, level: str, collection: int = 24) -> Iterator[Item]:
    """Test items whose documents all come from one collection, the same for all levels, in any
    order: the questions are new and the documents return."""
    rng = Random(f"returning documents {seed} {level}")
    people = draw_people(Random(f"collection {seed}"), collection)
    count, hops = int(level.partition(",")[0].partition("=")[2]), 2 if "hops" in level else 1
    by_name = {person.name: person for person in people}
    for _ in range(number):
        asked_of = rng.choice(people)
        others = [p for p in people if p.name not in (asked_of.name, asked_of.other)]
        found = [asked_of, by_name[asked_of.other], *rng.sample(others, count - 2)]
        asked, answer = draw_question(rng, found, hops, asked_of)
        rng.shuffle(found)
        yield Item(
            task=Documents.name,
            messages=({"role": "user", "content": f"{describe_people(found)}\n{asked}"},),
            text=None,
            answer=answer,
            max_tokens=64,
            level=level,
            fields={"documents": [person.describe() for person in found], "question": asked},
        )


def draw_people(rng: Random, number: int) -> list[Person]:
    """People with different names, each related to another."""
    names: list[str] = []
    while len(names) < number:
        name = invented_name(rng)
        if name not in names:
            names.append(name)
    return [
        Person(
            name,
            rng.choice(CITIES),
            rng.choice(JOBS),
            rng.choice(ANIMALS),
            rng.choice(RELATIONS),
            rng.choice([other for other in names if other != name]),
        )
        for name in names
    ]


def describe_people(people: list[Person]) -> str:
    """The documents as they stand in the prompt."""
    return "".join(f"Document: {person.describe()}\n" for person in people)


def draw_question(
    rng: Random, people: list[Person], hops: int, about_whom: Person | None = None
) -> tuple[str, str]:
    """A question (about one of the people, if none is given) and the sentences that answer it; of
    two hops, from two documents."""
    person = about_whom or rng.choice(people)
    relation = f"The {person.relation} of {person.name} is {person.other}."
    who, about, first = person.name, person, ""
    if hops == 2:
        who = f"the {person.relation} of {person.name}"
        about = next(other for other in people if other.name == person.other)
        first = f"{relation} "
    turns = [
        (f"Where does {who} live?", f"{first}{about.name} lives in {about.city}."),
        (f"What does {who} work as?", f"{first}{about.name} works as a {about.job}."),
        (f"Which animal does {who} have?", f"{first}{about.name} has a {about.animal}."),
    ]
    if hops == 1:
        turns.append((f"Who is the {person.relation} of {who}?", relation))
    asked, answer = rng.choice(turns)
    return asked, START + answer
