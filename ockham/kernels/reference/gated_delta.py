"""The gated delta rule in NumPy, token by token."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.kernels.ops.gated_delta import GatedDelta
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.recurrence import recur
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(GatedDelta)
def compute(run: ReferenceRun, op: GatedDelta) -> None:
    projected = run.product(op, "inputs", normalise(run.of_active(run.x), op.norm))
    values, heads = op.shape.values, op.value_heads
    x, z, b, a = np.split(projected, np.cumsum([op.shape.channels, values, heads]), axis=1)
    beta: Floats = (1 / (1 + np.exp(-b))).astype(np.float32)
    decay = op.decay * np.logaddexp(0, a + op.decay_bias)

    def prepare(q: Floats, k: Floats) -> tuple[Floats, Floats]:
        return _unit(q) * np.float32(op.key_dim**-0.5), _unit(k)

    given, _ = recur(run, op, x, beta, decay, prepare, corrects=True)
    o = normalise(given.reshape(-1, op.value_dim), op.head_norm).reshape(given.shape)
    run.add(run.product(op, "out", o * (z / (1 + np.exp(-z)))), None, op.residual_scale)


def _unit(heads: Floats) -> Floats:
    lengths = np.sqrt((heads * heads).sum(axis=1, keepdims=True) + np.float32(1e-6))
    unit: Floats = heads / lengths
    return unit
