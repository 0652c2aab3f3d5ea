"""`cloze`: the last word of a passage of documentation, after LAMBADA (Paperno et al. 2016,
arXiv:1606.06031): a word that was said before."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import ClassVar

from ockham.lab.tasks.documentation import paragraphs, sentences
from ockham.lab.tasks.item import Count, Item, Split, draw, level_of, mostly_tested

_LEAST_LETTERS = 4
_LAST = re.compile(rf"^(.* )([a-z]{{{_LEAST_LETTERS},}})[.,;]?$")
_WORD = re.compile(r"\w+")


class Cloze:
    """Continue a passage by the word that ends its sentence, which the passage has said before. The
    model reads plain text, no chat."""

    name: ClassVar[str] = "cloze"
    summary: ClassVar[str] = "the word that ends a passage of documentation"
    levels: ClassVar[tuple[str, ...]] = ("words=15", "words=30", "words=60")

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
        found = _passages(split, int(level.partition("=")[2]))
        order = draw(self.name, seed, 0, split).sample(range(len(found)), len(found))
        passage, word = found[order[index % len(found)]]
        return Item(
            task=self.name,
            messages=(),
            text=None,
            prompt=passage,
            answer=f" {word}",
            max_tokens=8,
            level=level,
        )

    def score(self, item: Item, completion: str) -> float:
        """Whether the first word is the one that was left out."""
        found = _WORD.match(completion.strip())
        return float(found is not None and found[0] == item.answer.strip())


@lru_cache(maxsize=8)
def _passages(split: Split, words: int) -> list[tuple[str, str]]:
    """Passages of at least half and at most one and a half times so many words, without the word
    that ends each, and that word."""
    found: dict[str, str] = {}
    for paragraph in paragraphs():
        parts = sentences(paragraph)
        for first in range(len(parts)):
            for last in range(first, len(parts)):
                text = " ".join(parts[first : last + 1])
                cut = _LAST.match(text)
                if cut is None or not 0.5 * words <= len(text.split()) <= 1.5 * words:
                    continue
                before, word = cut[1].rstrip(), cut[2]
                if word in _WORD.findall(before) and mostly_tested(split, before):
                    found[before] = word
    return list(found.items())
