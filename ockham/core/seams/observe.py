"""What a technique wants to know of a step, and what it is told of it: `Observer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ockham.core.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class OwnRows:
    """The rows of an observer's sequence in a step. No observer sees those of another sequence.

    `tokens` (n,) are the rows' inputs, `cells` (n,) where their state is written. After each of the
    last `choosing` rows a token is chosen: after a chunk's last row, and after those of its draft.
    """

    tokens: Ints
    cells: Ints
    choosing: int


@dataclass(frozen=True, slots=True)
class Wants:
    """What an observer wants to know of its own rows; nothing by default."""

    scores: Sequence[int] = ()
    """Layers whose attention probabilities are wanted."""
    rows: Ints | None = None
    """The rows that `scores` are wanted of, as indices into the own rows, ascending; None for the
    rows that choose."""


NOTHING = Wants()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step found, of an observer's own rows. The arrays are valid until `saw` returns."""

    rows: Ints
    """(n,) the rows that all of this is of, as indices into the own rows."""
    scores: Mapping[int, Sequence[Floats]] = field(default_factory=dict)
    """Layer -> of each row, one probability for each key that it sees, the last its own. They are
    summed over the query heads."""


class Observer(Protocol):
    """Wants to know something of the rows of one sequence, step by step.

    A class that derives from it inherits an observer that wants nothing.
    """

    def wants(self, own: OwnRows) -> Wants:
        """What is wanted of these rows, which are computed next. A step of decoding that goes on as
        the one before is not asked about: it wants the same."""
        return NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """The step has found what was wanted of these rows. Not told of rows of which nothing was
        wanted."""
        return
