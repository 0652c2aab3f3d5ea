"""Rows that decide by themselves which feed-forwards they skip (`core.sparing`), in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.core.sparing import Sparing
from ockham.kernels.reference.run import ReferenceRun


def before(run: ReferenceRun, operation: int) -> None:
    """Leave rows that skip an operation out of the active ones."""
    rules, own = run.step.sparing, run.spared
    layer = -1 if rules is None else _layer_of(rules, operation)
    if rules is None or layer < 0:
        return
    every = np.arange(run.step.rows, dtype=np.int32)
    active = every if run.active is None else run.active
    if operation == rules.starts[layer]:
        if not len(own.left):
            own.left = np.zeros(run.step.rows, np.int32)
            own.skipped = np.zeros((len(rules.starts), run.step.rows), np.uint8)
        ruled = active[rules.rows[active] >= 0]
        of = rules.rows[ruled]
        inside = ruled[(rules.firsts[of] <= layer) & (layer < rules.stops[of])]
        skipping = inside[own.left[inside] > 0]
        own.left[skipping] -= 1
        own.skipped[layer, skipping] = 1
        own.runs = np.setdiff1d(active, skipping).astype(np.int32)
        own.deciding = np.setdiff1d(inside, skipping).astype(np.int32)
        own.stream = run.x[own.deciding].copy()
    if len(own.runs) < len(active):
        run.active = own.runs


def after(run: ReferenceRun, operation: int) -> None:
    """Let the rows that ran a feed-forward decide about the next ones."""
    rules, own = run.step.sparing, run.spared
    if rules is None or not len(own.deciding):
        return
    layer = _layer_of(rules, operation)
    if layer < 0 or operation + 1 != rules.ends[layer]:
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
