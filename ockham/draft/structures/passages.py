"""Passages of a text by what the latest tokens ask for: BM25 over token ids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

PASSAGE = 32
"""Tokens of a passage."""
_SATURATION = 1.2
"""k1 of BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework"); all passages
are as long, so that b has no part."""


class Passages:
    """The whole passages of a text that grows, each `PASSAGE` tokens."""

    def __init__(self) -> None:
        self._counts: list[Counter[int]] = []
        self._containing: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def grow(self, tokens: Sequence[int]) -> None:
        """The text is now `tokens`, which begins with what it was."""
        for start in range(len(self) * PASSAGE, len(tokens) - PASSAGE + 1, PASSAGE):
            self._counts.append(Counter(tokens[start : start + PASSAGE]))
            self._containing.update(self._counts[-1].keys())

    def best(self, query: Sequence[int], upto: int, most: int) -> list[int]:
        """Of the first `upto` passages those that share the most with a query, at most `most`, in
        the order of the text; the later ones where they share as much."""
        asked = {
            token: math.log(1.0 + (len(self) - n + 0.5) / (n + 0.5))
            for token in set(query)
            if (n := self._containing[token])
        }
        scored = []
        for number, counts in enumerate(self._counts[:upto]):
            score = sum(
                weight * n * (_SATURATION + 1.0) / (n + _SATURATION)
                for token, weight in asked.items()
                if (n := counts.get(token, 0))
            )
            scored.append((score, number))
        return sorted(number for _, number in sorted(scored, reverse=True)[:most])
