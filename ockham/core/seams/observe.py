"""What a technique wants to know of a step, and what it is told of it: `Observer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from ockham.core.arrays import Doubles, Floats, Ints


class OwnRows(msgspec.Struct, frozen=True):
    """The rows of an observer's sequence in a step. No observer sees those of another sequence.

    `tokens` (n,) are the rows' inputs, below 0 where that is no token but a mark of a draft, and
    `places` (n,) says which tokens of the sequence they are; those of a draft are counted on one
    after another. A token is chosen by the output of each of the
    last `choosing` rows: of a chunk's last row, and of those of its draft. A row whose token is
    known without its output, because a grammar forces it, is none of them.
    """

    tokens: Ints
    places: Ints
    choosing: int


class Wants(msgspec.Struct, frozen=True):
    """What an observer wants to know of its own rows; nothing by default."""

    candidates: int = 0
    """How many of the likeliest tokens after each row that chooses."""
    logits: bool = False
    """Whether the logits of each row that chooses are wanted. They cost memory and time where only
    the largest would be looked for, of a greedy sequence."""
    hidden: Sequence[int] = ()
    """Layers after which hidden states are wanted (-1: after the embedding)."""
    scores: Sequence[int] = ()
    """Layers whose attention probabilities are wanted, for each key-value head."""
    score_sums: Sequence[int] = ()
    """Layers whose attention probabilities are wanted, summed over all query heads: the larger the
    number of heads, the less memory they need than `scores`."""
    totals: Sequence[int] = ()
    """Layers whose attention probabilities are wanted, for each key-value head, summed over the
    rows of each of `totalled`. However many rows that are, it takes the memory of one."""
    totalled: Sequence[Ints] = ()
    """Sets of rows, as indices into the own rows; those that are empty are left out."""
    queries: Sequence[int] = ()
    """Layers whose queries are wanted, as their attention reads them: rotated, not scaled."""
    rows: Ints | None = None
    """The rows that `hidden`, `scores`, `score_sums` and `queries` are wanted of, as indices into
    the own rows, ascending; None for the rows that choose."""
    newest: bool = False
    """Whether to be told later, when the step's tokens are chosen, and then only of the row by
    which the newest one was chosen; the candidates are those of the marks behind it. `rows` is None
    then. Nothing is told of a sequence that has ended, nor if there is nothing to tell."""
    settled: bool = False
    """Whether `hidden` is wanted of every own row, and told later, when the step's tokens are
    chosen: of the rows that stay, which are all but those of drafted tokens that were not accepted.
    Nothing else is wanted then, and nothing is told of a sequence that has ended."""

    def __post_init__(self) -> None:
        others = self.candidates, self.logits, self.scores, self.score_sums, self.totals
        assert not self.settled or not any((*others, self.queries, self.newest)), "hidden alone"
        assert not self.settled or self.rows is None, "every own row"
        assert self.rows is None or not self.newest, "the newest token's row is known only later"
        assert not (self.queries and self.newest), "queries are of rows that are known before"
        assert not (self.totals and self.newest), "totals are of rows that are known before"


NOTHING = Wants()


class Seen(msgspec.Struct, frozen=True):
    """What a step found, of an observer's own rows. The arrays are valid until `saw` returns."""

    newest: bool
    """Whether this is of the row by which the newest token was chosen, as `Wants.newest` asks."""
    rows: Ints
    """(n,) the rows that `hidden`, `scores`, `score_sums` and `queries` are of, as indices into the
    own rows."""
    candidates: Ints
    """(m, `Wants.candidates`) the likeliest tokens after each row that chooses, or, if `newest`,
    after each mark behind that row; the likeliest first, -1 where nothing is known."""
    logits: Floats
    """(r, vocabulary), of each row that chooses, or of that one if `newest`."""
    hidden: Mapping[int, Floats]
    """Layer -> (n, hidden_size)."""
    scores: Mapping[int, Sequence[Floats]]
    """Layer -> of each row, (kv_heads, keys): for each key-value head one value for each key that
    the row sees, the last its own. It is the sum of the probabilities of the query heads that read
    the head. There are no keys in a layer whose attention the sequence's gate leaves out."""
    score_sums: Mapping[int, Sequence[Floats]] = msgspec.field(default_factory=dict)
    """Layer -> of each row, (keys,): the same, summed over all query heads."""
    totals: Mapping[int, Sequence[Doubles | None]] = msgspec.field(default_factory=dict)
    """Layer -> of each of `Wants.totalled`, (kv_heads, keys): `scores` summed over its rows, for
    the keys that the last of them sees; each value is rounded to a multiple of 2^-32 first, so that
    sums of these, too, are the same in any order. None of an empty set."""
    queries: Mapping[int, Floats] = msgspec.field(default_factory=dict)
    """Layer -> (n, heads * head_dim); zeros in a layer whose attention the sequence's gate leaves
    out."""


class Observer(Protocol):
    """Wants to know something of the rows of one sequence, step by step.

    A class that derives from it inherits an observer that wants nothing.
    """

    def wants(self, own: OwnRows) -> Wants:
        """What is wanted of these rows, which are computed next. Where a sequence decodes, one row
        after the other, that is asked once for many steps."""
        return NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """The step has found what was wanted of these rows. Not told of rows of which nothing was
        wanted."""
        return
