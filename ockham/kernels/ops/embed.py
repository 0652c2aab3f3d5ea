"""The embedding of the step's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.core.cost import OperationCost
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class Embed(Operation):
    """x = table[ids] * scale, or the step's own embedding (not scaled) where a row has one.

    Where positions are learned, x += types[p // P] + positions[p % P], p the row's position: a row
    of type t in place i has the position t * P + i (without `types` only t = 0). In the end
    x = norm(x), where there is one. `x` (R, D) is the residual stream, which the other operations
    read and add to."""

    table: Linear  # (V, D)
    scale: float = 1.0
    positions: Linear | None = None  # (P, D)
    types: Linear | None = None  # (T, D)
    norm: Norm | None = None

    def matrices(self) -> dict[str, Linear]:
        tables = {"embedding": self.table, "positions": self.positions, "types": self.types}
        return {name: table for name, table in tables.items() if table is not None}

    def cost(self) -> OperationCost:
        """One row of the table is read for each row."""
        return OperationCost(None, row_bytes=self.table.nbytes // self.table.out_features)

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The stream, its normed copy, a branch, and two that formulas make on the way."""
        return {"stream": 5 * sizes.rows * self.table.in_features}
