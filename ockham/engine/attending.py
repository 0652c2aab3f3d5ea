"""How the layers of a program attend, in the words of the seam `keep`."""

from __future__ import annotations

from functools import partial

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import LayerAttention, Linear
from ockham.kernels.ops import Attend, AttentionInput, AttentionOutput, LatentInput, Program


def layer_attention(program: Program) -> dict[int, LayerAttention]:
    """Of each layer that attends, how it does."""
    kinds = (AttentionInput, LatentInput)
    inputs = {op.layer: op for op in program.ops if isinstance(op, kinds)}
    outputs = {op.layer: op for op in program.ops if isinstance(op, AttentionOutput)}
    return {
        op.layer: LayerAttention(
            op.heads,
            op.head_dim,
            op.scale,
            None if (rope := inputs[op.layer].rope) is None else rope.inverse_frequencies,
            1.0 if rope is None else rope.scale,
            partial(_output, outputs[op.layer], op),
        )
        for op in program.ops
        if isinstance(op, Attend)
    }


def _output(output: AttentionOutput, attend: Attend) -> Floats:
    """The matrix that ends a layer's attention (hidden, heads * head_dim). Where a head's values go
    through a matrix of its own first, it is the product of both."""
    whole = _matrix(output.out)
    if not output.values:
        return whole
    found = np.zeros((len(whole), attend.heads, attend.head_dim), np.float32)
    by_head = whole.reshape(len(whole), attend.heads, -1)
    for head, value in enumerate(output.values):
        found[:, head, -value.in_features :] = by_head[:, head] @ _matrix(value)
    return found.reshape(len(whole), -1)


def _matrix(linear: Linear) -> Floats:
    """A matrix (out_features, in_features), whatever its format and layout are."""
    return linear.rows(np.arange(linear.out_features, dtype=np.int32))
