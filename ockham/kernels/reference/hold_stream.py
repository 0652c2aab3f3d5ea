"""The residual stream kept in NumPy."""

from __future__ import annotations

from ockham.kernels.ops import HoldStream
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(HoldStream)
def compute(run: ReferenceRun, op: HoldStream) -> None:
    run.held = run.x.copy()
