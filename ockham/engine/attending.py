"""How the layers of a program attend, in the words of the seam `keep`."""

from __future__ import annotations

from functools import partial

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import LayerAttention, Linear
from ockham.kernels.ops import Attend, AttentionInput, AttentionOutput, Program


def layer_attention(program: Program) -> dict[int, LayerAttention]:
    """Of each layer that attends, how it does."""
    inputs = {op.layer: op for op in program.ops if isinstance(op, AttentionInput)}
    outputs = {op.layer: op for op in program.ops if isinstance(op, AttentionOutput)}
    return {
        op.layer: LayerAttention(
            op.heads,
            op.head_dim,
            op.scale,
            None if (rope := inputs[op.layer].rope) is None else rope.inverse_frequencies,
            1.0 if rope is None else rope.scale,
            partial(_matrix, outputs[op.layer].out),
        )
        for op in program.ops
        if isinstance(op, Attend)
    }


def _matrix(linear: Linear) -> Floats:
    """A matrix (out_features, in_features), whatever its format and layout are."""
    return linear.rows(np.arange(linear.out_features, dtype=np.int32))
