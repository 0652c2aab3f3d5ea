"""The embedding of the step's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.core.cost import OperationCost
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Operation, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class Embed(Operation):
    """x = table[ids] * scale, or the step's own embedding (not scaled) where a row has one.

    `x` (R, D) is the residual stream, which the other operations read and add to."""

    table: Linear  # (V, D)
    scale: float = 1.0

    def matrices(self) -> dict[str, Linear]:
        return {"embedding": self.table}

    def cost(self) -> OperationCost:
        """One row of the table is read for each row."""
        return OperationCost(None, row_bytes=self.table.nbytes // self.table.out_features)

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The stream, its normed copy, a branch, and two that formulas make on the way."""
        return {"stream": 5 * sizes.rows * self.table.in_features}
