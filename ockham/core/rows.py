"""The rows of a step: where they stand, what they see, and the one builder of `Step`.

Rows of a *chain* see every cell of their sequence up to their own. A row of a *branch* (a token of
a draft tree) sees what is committed, then its ancestors, then itself, wherever their cells are. Its
position is the one that it would have if all of them were accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ockham.core.step import NO_ROWS, Ints, Longs, Step, Tables


class Branch(NamedTuple):
    """A row that is no continuation of the cells before its own."""

    row: int
    committed: int
    """The row sees the cells [0, committed) first."""
    above: Sequence[int]
    """The cells of its ancestors, the nearest to the committed ones first. The row's own cell
    follows them."""


class Chains(NamedTuple):
    """Rows of several sequences, in consecutive cells of each."""

    owner: Ints  # (R,) which sequence
    cells: Ints  # (R,)
    first_rows: Ints  # (sequences,)


def chains(starts: Ints, counts: Ints) -> Chains:
    """`counts[s]` rows of each sequence s, the first of them in cell `starts[s]`."""
    ends = np.cumsum(counts, dtype=np.int32)
    first_rows: Ints = ends - counts
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    cells = np.arange(len(owner), dtype=np.int32) + np.repeat(starts - first_rows, counts)
    return Chains(owner, cells, first_rows)


def build_step(
    ids: Ints,
    cells: Ints,
    owner: Ints,
    tables: tuple[Tables, ...],
    page_tokens: int,
    *,
    slots: tuple[Longs, ...] | None = None,
    branches: Sequence[Branch] = (),
    seeds: npt.NDArray[np.uint64] | None = None,
    wants_logits: Ints = NO_ROWS,
    wants_argmax: Ints = NO_ROWS,
    wants_scores: dict[int, Ints] | None = None,
    candidates: int = 0,
) -> Step:
    """The step of R rows that write the state of `ids` into `cells` of the sequences `owner`.

    Rows are of chains unless `branches` names them, in ascending order. `slots` are given where the
    page tables do not say them, for rows whose state nobody reads. Positions, cells and contexts
    share no memory, so that each can be moved on in place."""
    positions, context = cells.copy(), cells + 1
    extra: Ints | None = None
    extra_starts: Ints | None = None
    if branches:
        counts = np.zeros(len(cells) + 1, np.int32)
        seen: list[int] = []
        for row, committed, above in branches:
            positions[row] = committed + len(above)
            context[row] = committed
            seen += above
            seen.append(int(cells[row]))
            counts[row + 1] = len(above) + 1
        extra = np.array(seen, np.int32)
        extra_starts = np.cumsum(counts, dtype=np.int32)
    return Step(
        ids=ids,
        positions=positions,
        sequence=owner,
        cells=cells,
        context=context,
        tables=tables,
        slots=slots or tuple(table.slots(owner, cells, page_tokens) for table in tables),
        page_tokens=page_tokens,
        wants_logits=wants_logits,
        wants_argmax=wants_argmax,
        wants_scores={} if wants_scores is None else wants_scores,
        candidates=candidates,
        seeds=np.zeros(len(ids), np.uint64) if seeds is None else seeds,
        extra=extra,
        extra_starts=extra_starts,
    )
