"""What every engine embeds: documents of words that occur in real texts, new in every round and the
same for all engines of a round."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ockham.lab.evidence.real_model import TEXTS

MARKS = 2
"""Tokens around each text: [CLS] and [SEP]."""

Count = Callable[[str], int]
"""Tokens of a text, without the marks around it."""


@dataclass(frozen=True)
class Workload:
    """`documents` texts with lengths between two bounds, marks included, drawn log-uniformly.
    `one_by_one`: each is a call of its own, as a query is."""

    name: str
    title: str
    documents: int
    tokens: tuple[int, int]
    one_by_one: bool = False


WORKLOADS = (
    Workload("query-16", "Queries of 16 tokens, one by one", 64, (16, 16), one_by_one=True),
    Workload("tokens-16", "Documents of 16 tokens", 256, (16, 16)),
    Workload("tokens-64", "Documents of 64 tokens", 128, (64, 64)),
    Workload("tokens-128", "Documents of 128 tokens", 64, (128, 128)),
    Workload("tokens-256", "Documents of 256 tokens", 32, (256, 256)),
    Workload("tokens-512", "Documents of 512 tokens", 16, (512, 512)),
    Workload("mixed", "Documents of 8 to 512 tokens", 64, (8, 512)),
)


def words_of(texts: Path = TEXTS) -> list[str]:
    """The words of the texts that the lab keeps, in their order."""
    return re.findall(r"[A-Za-z]+", " ".join(json.loads(texts.read_text("utf-8"))))


def token_counts(workload: Workload, seed: str) -> list[int]:
    """The tokens of each document, marks included."""
    numbers = random.Random(seed)
    low, high = workload.tokens
    return [
        min(high, int(low * ((high + 1) / low) ** numbers.random()))
        for _ in range(workload.documents)
    ]


def documents(workload: Workload, words: Sequence[str], count: Count, seed: str) -> list[str]:
    """The documents of a workload. Raises ValueError if no word is a single token."""
    sizes = {word: count(word) for word in dict.fromkeys(words)}
    if 1 not in sizes.values():
        raise ValueError("none of the words is a single token.")
    numbers = random.Random(f"{seed} words")
    return [
        _document(words, sizes, tokens - MARKS, numbers.randrange(len(words)))
        for tokens in token_counts(workload, seed)
    ]


def _document(words: Sequence[str], sizes: dict[str, int], tokens: int, start: int) -> str:
    """Words from `start` on; one that would make the document too long is left out."""
    chosen: list[str] = []
    at = start
    while tokens:
        word = words[at % len(words)]
        at += 1
        if sizes[word] <= tokens:
            chosen.append(word)
            tokens -= sizes[word]
    return " ".join(chosen)
