"""The output head in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.kernels.ops import Head
from ockham.kernels.reference.formulas import normalise, softcap
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(Head)
def compute(run: ReferenceRun, op: Head) -> None:
    step, given = run.step, len(run.step.wants_logits)
    rows = np.concatenate((step.wants_logits, step.wants_argmax))
    logits = op.out.matmul(normalise(run.x[rows], op.norm))
    if op.bias is not None:
        logits += op.bias
    if op.scale != 1.0:
        logits *= np.float32(op.scale)
    logits = softcap(logits, op.softcap)
    run.logits = logits[:given]
    run.argmax = logits[given:].argmax(axis=1).tolist()
    run.largest = logits[given:].max(axis=1)
    run.candidates = _candidates(logits, step.candidates)


def _candidates(logits: Floats, count: int) -> Ints:
    """The `count` largest of each row, the lowest token first on a tie, -1 where there are no
    more: (rows, count)."""
    found: Ints = np.full((len(logits), count), -1, np.int32)
    if count:
        order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        found[:, : order.shape[1]] = order
    return found
