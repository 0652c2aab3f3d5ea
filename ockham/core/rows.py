"""The rows of a step: where they stand, what they see, and the one builder of `Step`.

A row is known by its *place*: which token of its sequence it computes, drafted tokens counted one
after another behind the committed ones. Its cell in a group of layers is its place, less the cells
of the sequence that the group has dropped.

Rows of a *chain* see every cell of their sequence up to their own. A row of a *branch* (a token of
a draft tree) sees what is committed, then its ancestors, then itself, wherever their cells are. Its
position is the one that it would have if all of them were accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ockham.core.step import NO_ROWS, GroupRows, Ints, Longs, Step, Tables


class Branch(NamedTuple):
    """A row that is no continuation of the places before its own."""

    row: int
    committed: int
    """The row sees the state of the places [0, committed) first."""
    above: Sequence[int]
    """The places of its ancestors, the nearest to the committed ones first. The row's own follows
    them."""


class Chains(NamedTuple):
    """Rows of several sequences, in consecutive places of each."""

    owner: Ints  # (R,) which sequence
    places: Ints  # (R,)
    first_rows: Ints  # (sequences,)


class Seen(NamedTuple):
    """The cells of R rows in one group, and the cells that they see: as in `GroupRows`."""

    cells: Ints
    context: Ints
    extra: Ints | None
    extra_starts: Ints | None

    def without(self, dropped: Ints) -> Seen:
        """The same in a group that has dropped so many cells before those of each row, (R,)."""
        extra = self.extra
        if extra is not None and self.extra_starts is not None:
            extra = extra - np.repeat(dropped, np.diff(self.extra_starts))
        return Seen(self.cells - dropped, self.context - dropped, extra, self.extra_starts)


def chains(starts: Ints, counts: Ints) -> Chains:
    """`counts[s]` rows of each sequence s, the first of them in place `starts[s]`."""
    ends = np.cumsum(counts, dtype=np.int32)
    first_rows: Ints = ends - counts
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    places = np.arange(len(owner), dtype=np.int32) + np.repeat(starts - first_rows, counts)
    return Chains(owner, places, first_rows)


def build_step(
    ids: Ints,
    places: Ints,
    owner: Ints,
    tables: tuple[Tables, ...],
    page_tokens: int,
    *,
    dropped: Sequence[Ints | None] = (),
    slots: tuple[Longs, ...] | None = None,
    branches: Sequence[Branch] = (),
    seeds: npt.NDArray[np.uint64] | None = None,
    wants_logits: Ints = NO_ROWS,
    wants_argmax: Ints = NO_ROWS,
    wants_scores: dict[int, Ints] | None = None,
    candidates: int = 0,
) -> Step:
    """The step of R rows that compute the tokens `ids` in `places` of the sequences `owner`.

    Rows are of chains unless `branches` names them, in ascending order. `dropped[g]` (S,) is how
    many cells of each sequence group g has dropped, all of them before the step's rows; None (or no
    entry) where none. `slots` are given where the page tables do not say them, for rows whose state
    nobody reads. Positions, cells and contexts share no memory, so that each can be moved on in
    place; groups that dropped nothing share cells and contexts."""
    positions, context = places.copy(), places + 1
    extra: Ints | None = None
    extra_starts: Ints | None = None
    if branches:
        counts = np.zeros(len(places) + 1, np.int32)
        seen: list[int] = []
        for row, committed, above in branches:
            positions[row] = committed + len(above)
            context[row] = committed
            seen += above
            seen.append(int(places[row]))
            counts[row + 1] = len(above) + 1
        extra = np.array(seen, np.int32)
        extra_starts = np.cumsum(counts, dtype=np.int32)
    whole = Seen(places, context, extra, extra_starts)
    groups = []
    for number, table in enumerate(tables):
        gone = dropped[number] if dropped else None
        rows = whole if gone is None else whole.without(gone[owner])
        at = slots[number] if slots else table.slots(owner, rows.cells, page_tokens)
        groups.append(GroupRows(table, at, *rows))
    return Step(
        ids=ids,
        positions=positions,
        sequence=owner,
        groups=tuple(groups),
        page_tokens=page_tokens,
        wants_logits=wants_logits,
        wants_argmax=wants_argmax,
        wants_scores={} if wants_scores is None else wants_scores,
        candidates=candidates,
        seeds=np.zeros(len(ids), np.uint64) if seeds is None else seeds,
    )
