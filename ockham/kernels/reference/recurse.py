"""The router of a model that runs some of its layers several times, in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.step import GroupRows, Step
from ockham.kernels.ops import Recurse
from ockham.kernels.ops.recurse import LEAST_SQUARE
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(Recurse)
def compute(run: ReferenceRun, op: Recurse) -> None:
    step = run.step
    if step.active or step.groups[op.group].extra is not None:
        raise ValueError("the rows of a step that choose their passes are of chains, and all run.")
    rows = np.arange(step.rows, dtype=np.int32) if run.active is None else run.active
    x = run.x[rows].astype(np.float64)
    scale = 1.0 / np.sqrt(np.square(x).mean(axis=1) + LEAST_SQUARE)
    scores = (x * op.router).sum(axis=1) * scale + op.bias
    if step.deeper is not None:
        scores += step.deeper[op.number, rows]
    deep = rows[scores > 0]
    run.going, run.going_until = deep, op.stop
    taken = np.zeros((1, step.rows), np.int32)
    taken[0, deep] = 1
    run.deep = np.concatenate((run.deep.reshape(-1, step.rows), taken))
    run.step = _side_by_side(step, op.group, deep)


def _side_by_side(step: Step, group: int, deep: Ints) -> Step:
    """The step whose rows `deep` stand side by side in a group of layers."""
    old = step.groups[group]
    slots, cells, context = old.slots.copy(), old.cells.copy(), old.context.copy()
    for sequence in np.unique(step.sequence[deep]):
        own = deep[step.sequence[deep] == sequence]
        first = int(np.searchsorted(step.sequence, sequence))
        taken = slice(first, first + len(own))
        for to, given in ((slots, old.slots), (cells, old.cells), (context, old.context)):
            to[own] = given[taken]
    groups: list[GroupRows] = list(step.groups)
    groups[group] = replace(old, slots=slots, cells=cells, context=context)
    return replace(step, groups=tuple(groups))
