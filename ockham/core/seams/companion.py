"""Other models in the engine, which write for searches: `Companion`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import msgspec

from ockham.core.cost import ModelCost
from ockham.core.probe import Probe
from ockham.core.seams.observe import Observer
from ockham.core.seams.search import Branch, TokenScores

Until = Callable[[Branch, int], bool]
"""Whether a companion has written enough: given the whole text, and after how many tokens of it the
companion went on."""


class Written(msgspec.Struct, frozen=True):
    """What a companion has written since it was asked to go on: its tokens, how sure it was of
    each, the whole text by now, and why it has ended, as in the API; None if it has not."""

    tokens: Sequence[int]
    scores: TokenScores
    text: str
    finish_reason: str | None


class Writer(Protocol):
    """One text after the prompt of a request, as a companion knows it."""

    def go_on(
        self,
        tokens: Sequence[int] = (),
        most: int | None = None,
        until: Until | None = None,
        keep: int | None = None,
    ) -> Future[Written]:
        """Take these tokens, which others have written, and go on with its own: until the text
        ends, until so many are its own, or `until` says after one that it is enough. Of what it has
        written before, only the first `keep` tokens stay.

        One call at a time. The future raises an OckhamError that says what kept the companion from
        it.
        """
        ...

    def give_up(self) -> None:
        """Nobody goes on with this text: free its state."""
        ...


class Companion(Protocol):
    """Another model of the same vocabulary. Its texts are drawn with the noise of the request, and
    what it computes is on the request's bill. It stops when the search is closed."""

    longest: int
    """Tokens of a text, the prompt included, at most."""
    cost: ModelCost
    probes: Mapping[str, Probe]
    """Those of the engine that read this model's states."""

    def open(self, number: int = 0, observer: Observer | None = None) -> Writer:
        """Begin a text, with the noise stream of this number. Nothing is computed yet. `observer`
        is told of its rows."""
        ...
