"""What the rows of a step visit, as their sequences' patterns say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Ints
from ockham.core.seams import SequencePattern
from ockham.core.step import Step
from ockham.core.visits import BLOCK_KEYS, EVERY, BlockVisits, Skipped, merged
from ockham.engine.part import Part


def visit(
    step: Step, parts: Sequence[Part], first_rows: Sequence[int], recall_every: int = 0
) -> None:
    """Put into a step what the patterns of its sequences say that their rows visit. `first_rows`
    are the first row of each part. The recall of every `recall_every`-th token that leaves blocks
    out is wanted."""
    patterned = [
        (visited.of, slice(row, row + part.rows))
        for part, row in zip(parts, first_rows, strict=True)
        if (visited := part.sequence.visited) is not None
    ]
    if patterned:
        put_visits(step, patterned)
    if patterned and recall_every:
        leave_out: npt.NDArray[np.bool_] = np.zeros(step.rows, np.bool_)
        for group in step.groups:
            if group.visits is not None:
                leave_out |= group.visits.query_blocks != EVERY
        # Of what a `Keep` has dropped nothing can be said: those rows have no pattern.
        owners = [part.sequence.pattern is not None for part in parts]
        leave_out &= np.repeat(owners, [part.rows for part in parts])
        sampled = step.groups[0].keys_seen % recall_every == 0
        step.wants_recall = np.flatnonzero(leave_out & sampled).astype(np.int32)


def put_visits(step: Step, patterned: Sequence[tuple[SequencePattern, slice]]) -> None:
    """Put into a step what patterns say that the rows visit which they are of."""
    for number, group in enumerate(step.groups):
        own_blocks = (group.keys_seen - 1) // BLOCK_KEYS
        query_blocks: Ints = np.full(step.rows, EVERY, np.int32)
        found: list[BlockVisits] = []
        for pattern, rows in patterned:
            for block in np.unique(own_blocks[rows]).tolist():
                visits = pattern.visits(number, block)
                if visits is not None:
                    query_blocks[rows][own_blocks[rows] == block] = len(found)
                    found.append(visits)
        group.visits = merged(query_blocks, found) if found else None


def skipped(step: Step, rows: slice, windows: Sequence[int]) -> list[Skipped]:
    """What neighbouring rows of one sequence do not visit, of each group. `windows` are those of
    the groups, 0 for none."""
    found = []
    for group, window in zip(step.groups, windows, strict=True):
        if group.visits is None:
            found.append(Skipped())
            continue
        high = group.keys_seen[rows]
        found.append(group.visits.skipped(rows, lowest_seen(high, window), high))
    return found


def lowest_seen(high: Ints, window: int) -> Ints:
    """The first key that rows see which see no key from `high` on."""
    return np.maximum(high - window, 0) if window else np.zeros_like(high)
