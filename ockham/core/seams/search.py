"""How many completions, which of them live, when to stop: `Search`."""

from __future__ import annotations

from typing import ClassVar, Protocol

from ockham.core.arrays import Ints
from ockham.core.seams.observe import Observer


class SearchState(Observer, Protocol):
    """The completions of one prompt that a Search goes through together, a row a step. After each
    row by which a token would be chosen, it `saw` what it wants of it, and goes on."""

    @property
    def drafts(self) -> list[list[int]]:
        """The completions so far, the best first."""
        ...

    def go_on(self) -> list[tuple[int, float]]:
        """Tokens and weights, by what the latest row showed: the sum of their embeddings, weighted
        so, is the next row's input. Empty when every completion has ended."""
        ...


class Search(Protocol):
    """How many completions, which of them live, when to stop."""

    name: ClassVar[str]

    def begin(self, drafts: int, prompt: Ints, salt: str, stops: frozenset[int]) -> SearchState:
        """Begin with a prompt, of which so many completions are wanted. A completion ends with one
        of `stops`. `salt` is the tenant: two never learn from each other."""
        ...
