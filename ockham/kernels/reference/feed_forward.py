"""The feed-forward branch in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import FeedForward
from ockham.kernels.reference.formulas import activated, gated, normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(FeedForward)
def compute(run: ReferenceRun, op: FeedForward) -> None:
    gate_up = run.product(op, "gate_up", normalise(run.of_active(run.x), op.norm))
    if op.gate_up_bias is not None:
        gate_up += op.gate_up_bias
    if op.gate_scale != 1.0:
        gate_up[:, : op.down.in_features] *= np.float32(op.gate_scale)
    inner = gated(gate_up, op.activation) if op.gated else activated(gate_up, op.activation)
    if run.leading is not None:
        inner[:, run.leading :] = 0.0
    branch = run.product(op, "down", normalise(inner, op.inner_norm))
    if op.down_bias is not None:
        branch += op.down_bias
    run.add(branch, op.post_norm, op.residual_scale, op.stream_norm, op.shortcut)
    if not run.spared.unfinished:
        run.keep_hidden(op.layer)
