"""The chosen experts in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import Linear
from ockham.kernels.ops import Experts
from ockham.kernels.reference.formulas import activated, gated, normalise, sigmoid
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(Experts)
def compute(run: ReferenceRun, op: Experts) -> None:
    h = run.h if op.norm is None else normalise(run.of_active(run.x), op.norm)
    branch = np.zeros_like(h)
    gate_up_bias = _of_each(op.gate_up_bias, op.gate_up)
    down_bias = _of_each(op.down_bias, op.down)
    for expert in np.unique(run.experts).tolist():
        rows, places = np.nonzero(run.experts == expert)
        inner = _inner(op, op.gate_up[expert].matmul(h[rows]) + gate_up_bias[expert])
        weights = run.expert_weights[rows, places, None]
        branch[rows] += weights * (op.down[expert].matmul(inner) + down_bias[expert])
    branch = normalise(branch, op.routed_norm)
    if op.shared_gate_up is not None and op.shared_down is not None:
        if op.shared_norm is not None:
            h = normalise(run.of_active(run.x), op.shared_norm)
        shared = op.shared_down.matmul(_inner(op, op.shared_gate_up.matmul(h)))
        if op.shared_gate is not None:
            shared *= sigmoid(op.shared_gate.matmul(h))
        branch += normalise(shared, op.shared_post_norm)
    run.add(branch, op.post_norm, op.residual_scale, shortcut=op.shortcut)
    run.keep_hidden(op.layer)


def _inner(op: Experts, x: Floats) -> Floats:
    return gated(x, op.activation) if op.gated else activated(x, op.activation)


def _of_each(bias: Floats | None, matrices: Sequence[Linear]) -> list[Floats]:
    """The bias of each expert; a zero where there are none."""
    if bias is None:
        return [np.zeros(1, np.float32)] * len(matrices)
    ends = np.cumsum([each.out_features for each in matrices])
    return np.split(bias, ends[:-1])
