"""The chosen experts in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import Experts
from ockham.kernels.reference.formulas import gated, sigmoid
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(Experts)
def compute(run: ReferenceRun, op: Experts) -> None:
    h, branch = run.h, np.zeros_like(run.h)
    for expert in np.unique(run.experts).tolist():
        rows, places = np.nonzero(run.experts == expert)
        inner = gated(op.gate_up[expert].matmul(h[rows]), op.activation)
        weights = run.expert_weights[rows, places, None]
        branch[rows] += weights * op.down[expert].matmul(inner)
    if op.shared_gate_up is not None and op.shared_down is not None:
        shared = op.shared_down.matmul(gated(op.shared_gate_up.matmul(h), op.activation))
        if op.shared_gate is not None:
            shared *= sigmoid(op.shared_gate.matmul(h))
        branch += shared
    run.add(branch, op.post_norm, op.residual_scale, shortcut=op.shortcut)
    run.keep_hidden(op.layer)
