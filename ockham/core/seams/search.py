"""How many completions, which of them live, when to stop: `Search`."""

from __future__ import annotations

from typing import ClassVar, Protocol

from ockham.core.arrays import Floats, Ints


class SearchState(Protocol):
    """The completions of one prompt that a Search goes through together, a row a step."""

    @property
    def drafts(self) -> list[list[int]]:
        """The completions so far, the best first."""
        ...

    def take(self, logits: Floats) -> list[tuple[int, float]]:
        """The latest row has these logits (vocabulary,). Tokens and weights: the sum of their
        embeddings, weighted so, is the next row's input. Empty when every completion has ended."""
        ...


class Search(Protocol):
    """How many completions, which of them live, when to stop."""

    name: ClassVar[str]

    def begin(self, drafts: int, prompt: Ints, salt: str, stops: frozenset[int]) -> SearchState:
        """Begin with a prompt, of which so many completions are wanted. A completion ends with one
        of `stops`. `salt` is the tenant: two never learn from each other."""
        ...
