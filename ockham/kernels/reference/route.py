"""The router of a mixture of experts in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.kernels.ops import Route
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(Route)
def compute(run: ReferenceRun, op: Route) -> None:
    run.h = normalise(run.of_active(run.x), op.norm)
    scores = op.router.matmul(run.h)
    if op.bias is not None:
        scores = scores + op.bias
    if op.sigmoid:
        weights: Floats = (1 / (1 + np.exp(-scores))).astype(np.float32)
    else:
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
    ranks = weights if op.correction is None else weights + op.correction
    if op.kept_groups < op.groups:
        of_groups = ranks.reshape(len(ranks), op.groups, -1)
        goods = np.sort(of_groups, axis=2)[..., : -op.group_best - 1 : -1].sum(axis=2)
        kept = np.argsort(-goods, axis=1, kind="stable")[:, : op.kept_groups]
        left = np.full(of_groups.shape, -np.inf, np.float32)
        np.put_along_axis(left, kept[..., None], 0, axis=1)
        ranks = (of_groups + left).reshape(ranks.shape)
    run.experts = np.argsort(-ranks, axis=1, kind="stable")[:, : op.top_k]
    chosen = np.take_along_axis(weights, run.experts, axis=1)
    if op.normalise:
        chosen = chosen / chosen.sum(axis=1, keepdims=True)
    run.expert_weights = chosen * np.float32(op.scale)
    if op.expert_scales is not None:
        run.expert_weights = run.expert_weights * op.expert_scales[run.experts]
