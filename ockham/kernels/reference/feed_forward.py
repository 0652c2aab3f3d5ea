"""The gated feed-forward branch in NumPy."""

from __future__ import annotations

from ockham.kernels.ops import FeedForward
from ockham.kernels.reference.formulas import gated, normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(FeedForward)
def compute(run: ReferenceRun, op: FeedForward) -> None:
    gate_up = run.product(op, "gate_up", normalise(run.of_active(run.x), op.norm))
    if op.gate_up_bias is not None:
        gate_up += op.gate_up_bias
    branch = run.product(op, "down", gated(gate_up, op.activation))
    if op.down_bias is not None:
        branch += op.down_bias
    run.add(branch, op.post_norm, op.residual_scale)
    run.keep_hidden(op.layer)
