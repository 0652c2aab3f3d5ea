"""What a compiled program costs, read off its operations."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.cost import GroupCost, ModelCost
from ockham.core.seams import Linear
from ockham.kernels.base import GroupLayout
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Embed,
    Experts,
    FeedForward,
    Head,
    Program,
    Route,
)


def cost_of(program: Program, groups: Sequence[GroupLayout]) -> ModelCost:
    """The cost of one row, one key and one pass over the weights of `program`."""
    dense: list[Linear] = []
    heads = 0
    embedding_row_bytes = head_weight_bytes = head_flops = 0
    moe_layers = experts = experts_per_row = expert_bytes = expert_flops = 0
    for op in program.ops:
        match op:
            case Embed():
                embedding_row_bytes = op.table.nbytes // op.table.out_features
            case AttentionInput():
                dense.append(op.qkv)
            case Attend():
                heads = op.heads
            case AttentionOutput():
                dense.append(op.out)
            case FeedForward():
                dense += [op.gate_up, op.down]
            case Route():
                dense.append(op.router)
                experts_per_row = op.top_k
            case Experts():
                moe_layers += 1
                experts = len(op.down)
                expert_bytes = op.gate_up[0].nbytes + op.down[0].nbytes
                expert_flops += experts_per_row * (_flops(op.gate_up[0]) + _flops(op.down[0]))
                shared = (op.shared_gate_up, op.shared_down, op.shared_gate)
                dense += [linear for linear in shared if linear is not None]
            case Head():
                head_weight_bytes, head_flops = op.out.nbytes, _flops(op.out)
    return ModelCost(
        linear_flops=sum(map(_flops, dense)) + expert_flops,
        head_flops=head_flops,
        dense_weight_bytes=sum(linear.nbytes for linear in dense),
        head_weight_bytes=head_weight_bytes,
        embedding_row_bytes=embedding_row_bytes,
        groups=tuple(
            GroupCost(len(g.layers), heads, g.head_dim, g.cell_bytes, g.window) for g in groups
        ),
        moe_layers=moe_layers,
        experts=experts,
        experts_per_row=experts_per_row,
        expert_bytes=expert_bytes,
    )


def _flops(linear: Linear) -> int:
    return 2 * linear.out_features * linear.in_features
