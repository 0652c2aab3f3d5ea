"""What a compiled program costs: the sum over its operations."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.cost import GroupCost, ModelCost, sum_costs
from ockham.kernels.base import GroupLayout
from ockham.kernels.ops import Program


def cost_of(program: Program, layouts: Sequence[GroupLayout]) -> ModelCost:
    """The cost of one row, one key and one pass over the weights of `program`."""
    groups = [
        GroupCost(
            len(each.layers),
            0,
            each.spec.uniform.width,
            each.cell_bytes,
            each.window,
            each.spec.uniform.heads,
        )
        for each in layouts
    ]
    return sum_costs([op.cost() for op in program.ops], groups)
