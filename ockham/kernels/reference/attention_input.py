"""Queries, keys and values in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import AttentionInput
from ockham.kernels.reference.formulas import grown, normalise, rotate
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(AttentionInput)
def compute(run: ReferenceRun, op: AttentionInput) -> None:
    x, heads = run.of_active(run.x), op.heads
    rows = len(x)
    h = normalise(x, op.norm)
    if op.beside is not None:
        embedded = normalise(op.beside.rows(run.of_active(run.step.ids)), op.beside_norm)
        h = np.concatenate([embedded, h], axis=1)
    qkv = run.product(op, "qkv", h)
    if op.bias is not None:
        qkv += op.bias
    q, k, v = np.split(qkv, [heads * op.head_dim, (heads + op.kv_heads) * op.head_dim], axis=1)
    if op.values_are_keys:
        v = k.copy()
    if op.norm_whole:
        q, k = normalise(q, op.q_norm), normalise(k, op.k_norm)
    q = q.reshape(rows, heads, op.head_dim)
    k = k.reshape(rows, op.kv_heads if op.reads is None else 0, op.head_dim)
    if not op.norm_whole:
        q, k = normalise(q, op.q_norm), normalise(k, op.k_norm)
    run.rope = op.rope
    if op.rope is not None:
        cos, sin = run.rotation_of(op.rope)
        cos, sin = run.of_active(cos), run.of_active(sin)
        rotate(q, cos, sin)
        rotate(k, cos, sin)
        if op.rope.growth:
            q *= run.of_active(grown(op.rope, run.step.positions))[:, None, None]
    if op.query_weight is not None:
        q *= op.query_weight
    run.q = run.of_step(q)
    if op.reads is not None:
        return
    v = normalise(v.reshape(rows, op.kv_heads, op.head_dim), op.v_norm)
    run.planes.store(op.layer, run.of_active(run.step.groups[op.group].slots), k, v)
