"""Rows of which it is decided while they are computed how much they run (`core.sparing`), in
NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.sparing import ALL, SKIPPED, Sparing
from ockham.kernels.ops import Operation
from ockham.kernels.reference.run import ReferenceRun


def groups(run: ReferenceRun, op: Operation, place: int) -> Iterator[None]:
    """Once for each group of rows that run an operation together: sets what of it they run."""
    rules, own = run.step.sparing, run.spared
    layer = -1 if rules is None else _layer_of(rules, place)
    if rules is None or layer < 0:
        yield
        return
    leading = run.leading
    active = np.arange(run.step.rows, dtype=np.int32) if run.active is None else run.active
    if place == rules.starts[layer]:
        _decide(run, rules, layer, active, op.neurons)
    every = list(own.groups.items()) or [(ALL, np.empty(0, np.int32))]
    for number, (neurons, rows) in enumerate(every):
        run.active = rows
        run.leading = leading if neurons == ALL else neurons
        own.unfinished = number + 1 < len(every)
        yield
    if place + 1 == rules.ends[layer]:
        _look(run, rules)


def _decide(run: ReferenceRun, rules: Sparing, layer: int, active: Ints, whole: int) -> None:
    """How many neurons of a feed-forward each active row runs."""
    own = run.spared
    if not len(own.left):
        own.left = np.zeros(run.step.rows, np.int32)
        own.ran = np.zeros((len(rules.starts), run.step.rows), np.int32)
    ran, of = own.ran[layer], rules.rows
    own.deciding = np.array(
        [
            row
            for row in active
            if of[row] >= 0 and rules.firsts[of[row]] <= layer < rules.stops[of[row]]
        ],
        np.int32,
    )
    skipping = own.deciding[own.left[own.deciding] > 0]
    own.left[skipping] -= 1
    ran[skipping] = SKIPPED
    own.deciding = np.setdiff1d(own.deciding, skipping).astype(np.int32)
    own.stream = run.x[own.deciding].copy()
    routed = np.full(run.step.rows, -1, np.int32) if rules.routed is None else rules.routed
    for row in active[routed[active] >= 0].tolist():
        ran[row] = _choice(run, rules, int(routed[row]), layer, row)
    if rules.told is not None:
        free = (of[active] < 0) & (routed[active] < 0)
        ran[active[free]] = rules.told[layer, active[free]]
    ran[active] = np.where((ran[active] > 0) & (ran[active] >= whole), ALL, ran[active])
    own.groups = {
        neurons: active[ran[active] == neurons]
        for neurons in dict.fromkeys(ran[active].tolist())
        if neurons != SKIPPED
    }


def _choice(run: ReferenceRun, rules: Sparing, router: int, layer: int, row: int) -> int:
    """How many neurons a row chooses to run."""
    routers = rules.routers
    assert routers is not None, "rows that are routed have routers"
    x = run.x[row].astype(np.float64)
    x /= np.sqrt((x * x).mean() + 1e-6)
    scores = routers.weights[router, layer] @ x + routers.biases[router, layer]
    return int(routers.widths[router, layer, int(scores.argmax())])


def _look(run: ReferenceRun, rules: Sparing) -> None:
    """Let the rows that ran a feed-forward decide about the next ones."""
    own = run.spared
    if not len(own.deciding):
        return
    x, y = own.stream.astype(np.float64), run.x[own.deciding].astype(np.float64)
    with np.errstate(invalid="ignore"):
        cosines = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    of = rules.rows[own.deciding]
    enough = cosines >= rules.thresholds[of]
    own.left[own.deciding[enough]] = rules.lengths[of[enough]]


def _layer_of(rules: Sparing, operation: int) -> int:
    """The layer whose feed-forward an operation is part of, -1 for none."""
    found = np.flatnonzero((rules.starts <= operation) & (operation < rules.ends))
    return int(found[0]) if len(found) else -1
