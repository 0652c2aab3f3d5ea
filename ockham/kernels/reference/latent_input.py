"""Queries and keys of multi-head latent attention in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import LatentInput
from ockham.kernels.reference.formulas import grown, normalise, rotate
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(LatentInput)
def compute(run: ReferenceRun, op: LatentInput) -> None:
    x, heads = run.of_active(run.x), op.heads
    rows, latent, plain = len(x), op.keys[0].out_features, op.keys[0].in_features
    rotated = op.head_dim - latent
    made = run.product(op, "inputs", normalise(x, op.norm))
    u, r, c = np.split(made, [made.shape[1] - op.head_dim, made.shape[1] - latent], axis=1)
    if op.query_up is not None:
        u = run.product(op, "query_up", normalise(u, op.query_norm))
    queries = u.reshape(rows, heads, rotated + plain)
    absorbed = [key.matmul(queries[:, head, rotated:]) for head, key in enumerate(op.keys)]
    q = np.concatenate([queries[..., :rotated], np.stack(absorbed, axis=1)], axis=-1)
    k = np.concatenate([r, normalise(c, op.latent_norm)], axis=1)[:, None]
    run.rope = op.rope
    if op.rope is not None:
        cos, sin = map(run.of_active, run.rotation_of(op.rope))
        rotate(q, cos, sin)
        rotate(k, cos, sin)
        if op.rope.growth:
            q *= run.of_active(grown(op.rope, run.step.positions))[:, None, None]
    run.q = run.of_step(q)
    run.planes.store(op.layer, run.of_active(run.step.groups[op.group].slots), k)
