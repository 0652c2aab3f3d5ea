"""The gated linear recurrence in NumPy, token by token."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.kernels.ops.linear_gru import LinearGru
from ockham.kernels.reference.formulas import activated, normalise, sigmoid
from ockham.kernels.reference.run import ReferenceRun, twin
from ockham.kernels.reference.short_convolution import cells_seen


@twin(LinearGru)
def compute(run: ReferenceRun, op: LinearGru) -> None:
    x = run.of_active(run.x)
    forget = sigmoid(run.product(op, "forget", normalise(x, op.forget_norm)))
    if op.bound is not None:
        forget = op.bound + (np.float32(1) - op.bound) * forget
    entering = activated(run.product(op, "input", normalise(x, op.input_norm)), "silu")
    states = _states(run, op, forget, entering * (np.float32(1) - forget))
    gate = normalise(run.product(op, "gate", normalise(x, op.gate_norm)), op.inner_norm)
    y = activated(states, "silu") * gate
    run.add(run.product(op, "out", normalise(y, op.out_norm)), None, op.residual_scale)


def _states(run: ReferenceRun, op: LinearGru, forget: Floats, entering: Floats) -> Floats:
    """The state behind each active row, (A, W)."""
    step, size = run.step, run.step.page_tokens
    cells, ends = step.groups[op.cells], step.groups[op.ends]
    kept, left = run.planes.rows(op.layer, op.cells), run.planes.rows(op.layer, op.ends)[:, 0]
    states: Floats = np.empty_like(entering)
    active = np.arange(step.rows) if run.active is None else run.active
    made: dict[tuple[int, int], Floats] = {}
    for i, row in enumerate(active.tolist()):
        owner, cell = int(step.sequence[row]), int(cells.cells[row])
        seen = cells_seen(cells, row)
        place = len(seen) - 1
        pages, end_pages = (
            group.tables.pages[group.tables.starts[owner] : group.tables.starts[owner + 1]]
            for group in (cells, ends)
        )
        state: Floats = np.zeros(op.width, np.float32)
        if place and (owner, seen[-2]) in made:
            state = made[owner, seen[-2]]
        elif place % size:
            state = kept[pages[seen[-2] // size], seen[-2] % size]
        elif place:
            state = left[end_pages[place // size - 1]]
        states[i] = made[owner, cell] = forget[i] * state + entering[i]
        if pages[cell // size] >= 0:
            kept[pages[cell // size], cell % size] = states[i]
        if (place + 1) % size == 0:
            assert cell == place, "no branch ends a chunk"
            if end_pages[place // size] >= 0:
                left[end_pages[place // size]] = states[i]
    return states
