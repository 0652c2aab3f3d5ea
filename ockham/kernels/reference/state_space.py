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
    read = run.of_active(run.held if op.held else run.x)
    projected = run.product(op, "inputs", normalise(read, op.norm))
    if op.inputs_bias is not None:
        projected = projected + op.inputs_bias
    x, z, s = np.split(projected, np.cumsum([op.shape.channels, op.shape.values]), axis=1)
    step = np.logaddexp(0, np.float32(op.step_scale) * s + op.step_bias)
    step = step.clip(op.shortest_step, op.longest_step)
    step = step.astype(np.float32)
    given, values = recur(run, op, x, step, op.decay * step, _as_they_are, corrects=False)
    o = given + np.repeat(op.skip, op.value_dim) * values
    z = np.float32(op.gate_scale) * z
    gate = z / (1 + np.exp(-z))
    if op.norm_first:
        o = _group_norm(o, op.group_norm, op.norm_groups) * gate
    else:
        o = _group_norm(o * gate, op.group_norm, op.norm_groups)
    out = run.product(op, "outputs", o)
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
