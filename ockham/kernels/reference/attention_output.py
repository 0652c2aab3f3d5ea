"""The end of an attention branch in NumPy."""

from __future__ import annotations

from ockham.kernels.ops import AttentionOutput
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(AttentionOutput)
def compute(run: ReferenceRun, op: AttentionOutput) -> None:
    branch = run.product(op, "out", run.of_active(run.a))
    if op.bias is not None:
        branch += op.bias
    run.add(branch, op.post_norm, op.residual_scale, op.stream_norm, op.shortcut)
