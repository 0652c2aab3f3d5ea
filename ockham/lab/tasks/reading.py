"""`reading`: short documents about people, and a question that one of them answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from ockham.lab.tasks.answers import says
from ockham.lab.tasks.english import COLOURS, FIRST_NAMES, MONTHS
from ockham.lab.tasks.item import Count, Item, Split, draw, level_of, mostly_tested
from ockham.lab.tasks.vocabulary import ANIMALS, CITIES, JOBS, words

_DISHES = words("bread cheese fish honey noodles pasta pizza potatoes rice salad soup")
_NUMBERS = tuple(str(number) for number in range(101, 1000, 3))

_FACTS: tuple[tuple[Sequence[str], str, str], ...] = (
    (CITIES, "{name} lives in {word}, not far from the station.", "Where does {name} live?"),
    (JOBS, "{name} works as a {word}.", "What does {name} work as?"),
    (ANIMALS, "{name} has a {word} at home.", "Which animal does {name} have?"),
    (MONTHS, "{name} was born in {word}.", "When was {name} born?"),
    (COLOURS, "The car of {name} is {word}.", "What is the colour of the car of {name}?"),
    (_DISHES, "The favourite food of {name} is {word}.", "What is the favourite food of {name}?"),
    (_NUMBERS, "The room number of {name} is {word}.", "What is the room number of {name}?"),
)
"""Words, the sentence that tells one of them, and the question that it answers."""
_TOLD = 3
"""Facts in a document."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is told of one person, and what may be asked of it: questions with their one-word
    answers."""

    name: str
    text: str
    asked: tuple[tuple[str, str], ...]


class Reading:
    """Answer a question about one of several people from a document about each. The first
    sentence of a completion must have the right word, and no other word that a document tells."""

    name: ClassVar[str] = "reading"
    summary: ClassVar[str] = "a question that one of several short documents answers"
    levels: ClassVar[tuple[str, ...]] = ("documents=1", "documents=2", "documents=3", "documents=5")

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
            documents = draw_documents(rng, int(level.partition("=")[2]))
            found = item_about(rng, documents, level)
            if mostly_tested(split, found.fields["question"], found.answer):
                return found

    def score(self, item: Item, completion: str) -> float:
        """Whether the first sentence has the word, and none of the others."""
        return float(says(completion, item.answer, item.fields["others"]))


def item_about(rng: Random, documents: Sequence[Document], level: str) -> Item:
    """A question that one of these documents answers."""
    asked, word = rng.choice(rng.choice(documents).asked)
    text = "\n\n".join(document.text for document in documents)
    others = {other for document in documents for _, other in document.asked} - {word}
    return Item(
        task=Reading.name,
        messages=({"role": "user", "content": f"{text}\n\n{asked}"},),
        text=None,
        answer=word,
        max_tokens=32,
        level=level,
        fields={
            "documents": [document.text for document in documents],
            "question": asked,
            "others": sorted(others),
        },
    )


def draw_documents(rng: Random, number: int) -> list[Document]:
    """A document about each of so many people."""
    return [_document(rng, name) for name in rng.sample(FIRST_NAMES, number)]


def _document(rng: Random, name: str) -> Document:
    told, asked = [], []
    for every, sentence, question in rng.sample(_FACTS, _TOLD):
        word = rng.choice(every)
        told.append(sentence.format(name=name, word=word))
        asked.append((question.format(name=name), word))
    return Document(name, " ".join(told), tuple(asked))
