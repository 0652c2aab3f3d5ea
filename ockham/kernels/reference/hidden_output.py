"""The end of a program that gives hidden states, in NumPy."""

from __future__ import annotations

from ockham.kernels.ops import HiddenOutput
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(HiddenOutput)
def compute(run: ReferenceRun, op: HiddenOutput) -> None:
    rows = run.step.wants_hidden.get(op.layer)
    if rows is not None:
        run.hidden[op.layer] = normalise(run.x[rows], op.norm)
