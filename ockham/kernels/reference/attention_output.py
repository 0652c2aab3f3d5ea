"""The end of an attention branch in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import AttentionOutput
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(AttentionOutput)
def compute(run: ReferenceRun, op: AttentionOutput) -> None:
    a = run.of_active(run.a)
    if op.gate is not None:
        gates = op.gate.matmul(normalise(run.of_active(run.x), op.gate_norm))
        a = a / (1 + np.exp(-gates))
    if op.values:
        of_heads = a.reshape(len(a), len(op.values), -1)[..., -op.values[0].in_features :]
        given = [value.matmul(of_heads[:, head]) for head, value in enumerate(op.values)]
        a = np.concatenate(given, axis=1)
    branch = run.product(op, "out", normalise(a, op.inner_norm))
    if op.bias is not None:
        branch += op.bias
    run.add(branch, op.post_norm, op.residual_scale, op.stream_norm, op.shortcut)
