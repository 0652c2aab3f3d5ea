"""Linear attention by a Taylor polynomial in NumPy, token by token."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.kernels.ops.linear_attention import LinearAttention
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.recurrence import recur
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(LinearAttention)
def compute(run: ReferenceRun, op: LinearAttention) -> None:
    projected = run.product(op, "inputs", normalise(run.of_active(run.x), op.norm))
    rows, width = len(projected), op.heads * op.features
    q, k, v = np.split(projected, [width, 2 * width], axis=1)
    mapped = [mapped_features(each.reshape(rows, op.heads, -1)) for each in (q, k)]
    values = v.reshape(rows, op.heads, -1)
    values = np.concatenate([values, np.ones_like(values[..., :1])], axis=2)
    x = np.concatenate([each.reshape(rows, -1) for each in (*mapped, values)], axis=1)
    ones: Floats = np.ones((rows, op.heads), np.float32)
    given, _ = recur(run, op, x, ones, 0 * ones, lambda q, k: (q, k), corrects=False)
    o = given.reshape(rows, op.heads, -1)
    o = o[..., :-1] / (o[..., -1:] + np.float32(op.eps))
    run.add(run.product(op, "out", o.reshape(rows, -1)), None, op.residual_scale)


def mapped_features(x: Floats) -> Floats:
    """(..., features) to (..., 1 + features + features^2)."""
    width = x.shape[-1]
    squares = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
    parts = [np.ones_like(x[..., :1]), x / np.float32(width**0.25), squares / np.sqrt(2.0 * width)]
    return np.concatenate(parts, axis=-1).astype(np.float32)
