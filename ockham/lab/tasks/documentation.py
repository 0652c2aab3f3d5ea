"""Paragraphs of English prose: what the English tasks and workloads are made of."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random

from ockham.lab.tasks.item import Split, mostly_tested

_PARAGRAPHS = Path(__file__).with_name("documentation.json.gz")
"""Prose of Python's documentation and of the docstrings of its standard library (PSF-2.0), which
`python -m recipes.english texts` chose: a list of paragraphs without line breaks."""
_SENTENCE_END = re.compile(r"(?<=[a-z)][.?!]) (?=[A-Z])")


@lru_cache(maxsize=1)
def paragraphs() -> tuple[str, ...]:
    """Every paragraph, the same on every machine."""
    with gzip.open(_PARAGRAPHS, "rt", encoding="utf-8") as file:
        return tuple(json.load(file))


@lru_cache(maxsize=2)
def paragraphs_of(split: Split) -> tuple[str, ...]:
    """The paragraphs that items of a split are made of."""
    return tuple(each for each in paragraphs() if mostly_tested(split, each))


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph."""
    return _SENTENCE_END.split(paragraph)


def draw_prose(rng: Random, tokens: int, count: Callable[[str], int]) -> list[str]:
    """Paragraphs from a random place on that come to at most so many tokens, and to at least one
    paragraph."""
    every = paragraphs()
    place, spent, found = rng.randrange(len(every)), 0, list[str]()
    while len(found) < len(every):
        paragraph = every[(place + len(found)) % len(every)]
        spent += count(f"{paragraph}\n\n")
        if found and spent > tokens:
            break
        found.append(paragraph)
    return found
