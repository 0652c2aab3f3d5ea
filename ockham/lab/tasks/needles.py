"""`needles`: facts between the paragraphs of documentation, one of which is asked for."""

from __future__ import annotations

from typing import ClassVar

from ockham.lab.tasks.answers import says
from ockham.lab.tasks.documentation import draw_prose
from ockham.lab.tasks.english import draw_hidden
from ockham.lab.tasks.item import Count, Item, Split, count_roughly, draw, level_of, mostly_tested

FACTS = 3
"""One is asked for; the others are of the same kinds."""
_TALK_TOKENS = 90
"""What the question and a chat template take, about."""


class Needles:
    """Find one of three sentences in prose that has nothing to do with them. The first sentence of
    a completion must have its word, and none of the words that the other two tell."""

    name: ClassVar[str] = "needles"
    summary: ClassVar[str] = "a fact hidden in English prose, at any depth"
    levels: ClassVar[tuple[str, ...]] = ("tokens=250", "tokens=500", "tokens=1000", "tokens=1500")

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """See `Task`."""
        level, count = level_of(self, index, level), count or count_roughly
        rng = draw(self.name, seed, index, split)
        while True:
            hidden = draw_hidden(rng, FACTS)
            number = rng.randrange(FACTS)
            asked = hidden[number]
            if mostly_tested(split, asked.question, asked.word):
                break
        room = int(level.partition("=")[2]) - _TALK_TOKENS
        room -= sum(count(f"{each.sentence}\n\n") for each in hidden)
        parts = draw_prose(rng, room, count)
        places = sorted(rng.randrange(len(parts) + 1) for _ in range(FACTS))
        for place, each in reversed(list(zip(places, hidden, strict=True))):
            parts.insert(place, each.sentence)
        text = "\n\n".join(parts)
        return Item(
            task=self.name,
            messages=({"role": "user", "content": f"{text}\n\n{asked.question}"},),
            text=None,
            answer=asked.sentence,
            max_tokens=32,
            level=level,
            fields={
                "question": asked.question,
                "word": asked.word,
                "others": sorted({e.word for e in hidden if e.word not in asked.sentence}),
                "depth": text.index(asked.sentence) / len(text),
            },
        )

    def score(self, item: Item, completion: str) -> float:
        """Whether the first sentence has the word, and none of the others."""
        return float(says(completion, item.fields["word"], item.fields["others"]))
