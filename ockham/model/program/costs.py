"""What a compiled program costs, read off its operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ockham.core.cost import GroupCost, ModelCost, ProductCost
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
from ockham.weights.stacked import parts_of


def cost_of(program: Program, groups: Sequence[GroupLayout]) -> ModelCost:
    """The cost of one row, one key and one pass over the weights of `program`."""
    dense: list[Linear] = []
    heads = 0
    embedding_row_bytes = head_weight_bytes = head_flops = 0
    moe_layers = experts = experts_per_row = expert_bytes = expert_flops = gate_values = 0
    products: list[ProductCost] = []
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
                gate_values += op.down.in_features
            case Route():
                dense.append(op.router)
                experts_per_row = op.top_k
            case Experts():
                moe_layers += 1
                experts = len(op.down)
                expert_bytes = op.gate_up[0].nbytes + op.down[0].nbytes
                expert_flops += experts_per_row * (_flops(op.gate_up[0]) + _flops(op.down[0]))
                gate_values += experts_per_row * op.down[0].in_features
                products += [
                    _product(each, experts=experts, experts_per_row=experts_per_row)
                    for each in (op.gate_up[0], op.down[0])
                ]
                shared = (op.shared_gate_up, op.shared_down, op.shared_gate)
                dense += [linear for linear in shared if linear is not None]
            case Head():
                head_weight_bytes, head_flops = op.out.nbytes, _flops(op.out)
                products.append(_product(op.out, head=True))
    return ModelCost(
        linear_flops=sum(map(_flops, dense)) + expert_flops,
        head_flops=head_flops,
        dense_weight_bytes=sum(linear.nbytes for linear in dense),
        head_weight_bytes=head_weight_bytes,
        embedding_row_bytes=embedding_row_bytes,
        groups=tuple(
            GroupCost(len(g.layers), heads, g.head_dim, g.cell_bytes, g.window, g.kv_heads)
            for g in groups
        ),
        moe_layers=moe_layers,
        experts=experts,
        experts_per_row=experts_per_row,
        expert_bytes=expert_bytes,
        products=_counted(
            [*(_product(part) for linear in dense for part in parts_of(linear)), *products]
        ),
        gate_values=gate_values,
    )


def kernel_of(linear: Linear) -> str:
    """The kind of kernel that multiplies with a matrix: its format, and its group if it has one."""
    group = getattr(linear, "group", 0)
    return f"{linear.format}:{group}" if group else linear.format


def _product(
    linear: Linear, head: bool = False, experts: int = 0, experts_per_row: int = 0
) -> ProductCost:
    return ProductCost(
        kernel_of(linear),
        linear.out_features,
        linear.in_features,
        linear.nbytes,
        1,
        head,
        experts,
        experts_per_row,
    )


def _counted(products: Sequence[ProductCost]) -> tuple[ProductCost, ...]:
    """Each kind once, with the number of its matrices."""
    return tuple(replace(each, count=count) for each, count in Counter(products).items())


def _flops(linear: Linear) -> int:
    return 2 * linear.out_features * linear.in_features
