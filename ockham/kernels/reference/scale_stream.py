"""The scaling of the residual stream in NumPy."""

from __future__ import annotations

from ockham.kernels.ops import ScaleStream
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(ScaleStream)
def compute(run: ReferenceRun, op: ScaleStream) -> None:
    run.x = run.x * op.scale
    run.keep_hidden(op.layer)
