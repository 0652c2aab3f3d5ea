"""The selective state space in NumPy, token by token."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.kernels.ops.operation import Norm
from ockham.kernels.ops.state_space import StateSpace
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.recurrence import recur
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(StateSpace)
def compute(run: ReferenceRun, op: StateSpace) -> None:
    projected = run.product(op, "inputs", normalise(run.of_active(run.x), op.norm))
    if op.inputs_bias is not None:
        projected = projected + op.inputs_bias
    x, z, s = np.split(projected, np.cumsum([op.shape.channels, op.shape.values]), axis=1)
    step = np.logaddexp(0, s + op.step_bias).clip(op.shortest_step, op.longest_step)
    step = step.astype(np.float32)
    given, values = recur(run, op, x, step, op.decay * step, _as_they_are, corrects=False)
    o = given + np.repeat(op.skip, op.value_dim) * values
    o = o * (z / (1 + np.exp(-z)))
    out = run.product(op, "out", _group_norm(o, op.group_norm, op.norm_groups))
    run.add(out if op.out_bias is None else out + op.out_bias, None, op.residual_scale)


def _as_they_are(q: Floats, k: Floats) -> tuple[Floats, Floats]:
    return q, k


def _group_norm(o: Floats, norm: Norm | None, groups: int) -> Floats:
    if norm is None:
        return o
    parts = o.reshape(len(o), groups, -1)
    lengths = np.sqrt((parts * parts).mean(axis=2, keepdims=True) + np.float32(norm.eps))
    normed: Floats = (parts / lengths).reshape(o.shape) * norm.weight
    return normed
