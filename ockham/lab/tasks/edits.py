"""`edits`: a short English text or a small function, and a change that is asked for."""

from __future__ import annotations

import re
from random import Random
from typing import ClassVar

from ockham.lab.tasks.documentation import paragraphs_of, sentences
from ockham.lab.tasks.english import FIRST_NAMES
from ockham.lab.tasks.item import Count, Item, Split, draw, is_answer, level_of, mostly_tested
from ockham.lab.tasks.reading import draw_documents
from ockham.lab.tasks.vocabulary import NOUNS

_SHOWN = 3
"""Changes that were made before, of the same kind: small models learn the form from them."""
_WORDS = (5, 16)
"""Of a sentence, at least and at most."""


class Edits:
    """Change one thing and leave all else as it is, as three examples do."""

    name: ClassVar[str] = "edits"
    summary: ClassVar[str] = "an English sentence, or a small function, with one thing changed"
    levels: ClassVar[tuple[str, ...]] = ("name", "quote", "begin", "end", "rename")

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
        shown = [draw_edit(rng, level, "train") for _ in range(_SHOWN)]
        asked, original, changed = draw_edit(rng, level, split)
        turns = [*(turn for what, text, after in shown for turn in (what + text, after))]
        return Item(
            task=self.name,
            messages=tuple(
                {"role": "assistant" if place % 2 else "user", "content": turn}
                for place, turn in enumerate([*turns, asked + original])
            ),
            text=None,
            answer=changed,
            max_tokens=96,
            level=level,
            fields={"original": original},
        )

    def score(self, item: Item, completion: str) -> float:
        """See `Task`."""
        return is_answer(item, completion)


def draw_edit(rng: Random, kind: str, split: Split) -> tuple[str, str, str]:
    """A change of this kind, the text that it is asked of, and the text after it."""
    while True:
        found = _edit(rng, kind, split)
        if mostly_tested(split, *found):
            return found


def _edit(rng: Random, kind: str, split: Split) -> tuple[str, str, str]:
    if kind == "rename":
        name, other, old, new = rng.sample(NOUNS, 4)
        code = f"def {name}_{other}({old}):\n    return {old} + {rng.randrange(2, 100)}"
        return f"Rename {old} to {new}:\n", code, re.sub(rf"\b{old}\b", new, code)
    name = rng.choice(FIRST_NAMES)
    if kind == "name":
        (document,) = draw_documents(rng, 1)
        new = rng.choice([each for each in FIRST_NAMES if each != document.name])
        text = sentences(document.text)[0]
        return f"Change {document.name} to {new}: ", text, text.replace(document.name, new)
    text = _sentence(rng, split)
    if kind == "begin":
        return f"Begin with {name}: ", text, f"{name}: {text}"
    if kind == "end":
        return f"End with {name}: ", text, f"{text} {name}"
    return "Put in quotes: ", text, f'"{text}"'


def _sentence(rng: Random, split: Split) -> str:
    """A short sentence of documentation."""
    while True:
        found = rng.choice(sentences(rng.choice(paragraphs_of(split))))
        if _WORDS[0] <= len(found.split()) <= _WORDS[1]:
            return found
