"""What the rows of a step visit, as their sequences' patterns say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ockham.core import choices
from ockham.core.arrays import Ints, Longs
from ockham.core.choices import NO_CHOICE, Choice
from ockham.core.cost import GroupCost, ModelCost
from ockham.core.seams import SequencePattern
from ockham.core.step import GroupRows, Step
from ockham.core.visits import BLOCK_KEYS, EVERY, BlockVisits, Skipped, merged
from ockham.engine.part import Part
from ockham.kernels.choosers import choosing_flops


def visit(
    step: Step, parts: Sequence[Part], first_rows: Sequence[int], recall_every: int = 0
) -> None:
    """Put into a step what the patterns of its sequences say that their rows visit. `first_rows`
    are the first row of each part. The recall of every `recall_every`-th token that leaves blocks
    out is wanted."""
    patterned = [
        (visited.of, slice(row, row + part.rows), part.sequence.prompt_tokens)
        for part, row in zip(parts, first_rows, strict=True)
        if (visited := part.sequence.visited) is not None
    ]
    if patterned:
        put_visits(step, [(pattern, rows) for pattern, rows, _ in patterned])
        put_choices(step, patterned)
    if patterned and recall_every:
        leave_out: npt.NDArray[np.bool_] = np.zeros(step.rows, np.bool_)
        for group in step.groups:
            if group.visits is not None:
                leave_out |= group.visits.query_blocks != EVERY
            if group.choices is not None:
                leave_out |= group.choices.rows != NO_CHOICE
        # Of what a `Keep` has dropped nothing can be said: those rows have no pattern.
        owners = [part.sequence.pattern is not None for part in parts]
        leave_out &= np.repeat(owners, [part.rows for part in parts])
        sampled = step.groups[0].keys_seen % recall_every == 0
        step.wants_recall = np.flatnonzero(leave_out & sampled).astype(np.int32)


def put_choices(step: Step, patterned: Sequence[tuple[SequencePattern, slice, int]]) -> None:
    """Put into a step how the rows choose which patterns are of, of sequences with so many tokens
    of a prompt."""
    for number, group in enumerate(step.groups):
        found: list[Choice] = []
        firsts: list[int] = []
        of_rows: Ints = np.full(step.rows, NO_CHOICE, np.int32)
        for pattern, rows, prompt_tokens in patterned:
            choice = pattern.choice(number)
            if choice is not None:
                of_rows[rows] = len(found)
                found.append(choice)
                firsts.append(prompt_tokens if choice.first is None else choice.first)
        group.choices = choices.merged(of_rows, found, firsts) if found else None


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


def left_out(step: Step, rows: slice, found: Mapping[int, Longs], cost: ModelCost) -> list[Skipped]:
    """What neighbouring rows of one sequence did not visit because they chose, of each group:
    `found` is `StepOutput.left_out`."""
    every = []
    for number, group in enumerate(step.groups):
        if number not in found or group.choices is None:
            every.append(Skipped())
            continue
        keys, nbytes, read = found[number][:, rows]
        chose = np.flatnonzero((nbytes != 0) | (read != 0) | (keys != 0))
        if not len(chose):
            every.append(Skipped())
            continue
        high = group.keys_seen[rows][chose].astype(np.int64)
        of = group.choices
        heads = cost.groups[number].kv_heads * int(
            of.layers.reshape(len(of.choosers), -1)[of.rows[rows.start]].sum()
        )
        # Together they would have read what the last of them sees.
        cells = int(high.max()) * heads - int(read.sum())
        read_bytes = int(nbytes.sum())
        flops = choice_flops(group, rows.start, read_bytes, cost.groups[number])
        every.append(Skipped(int(keys.sum()), cells, read_bytes, flops))
    return every


def choice_flops(group: GroupRows, row: int, nbytes: int, cost: GroupCost) -> int:
    """FLOPs of choosing by `nbytes` bytes of summaries, as the `row` does."""
    if not nbytes or group.choices is None:
        return 0
    chooser = group.choices.choosers[int(group.choices.rows[row])]
    return choosing_flops(chooser, cost.head_dim, nbytes, cost.heads // cost.kv_heads)


def lowest_seen(high: Ints, window: int) -> Ints:
    """The first key that rows see which see no key from `high` on."""
    return np.maximum(high - window, 0) if window else np.zeros_like(high)
