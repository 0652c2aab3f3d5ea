"""What each layer is given of a token beside the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.core.cost import OperationCost
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes, products_of


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputs(Operation):
    """The per-layer inputs of Gemma 4: p = (norm(projection(x) * projection_scale) +
    table[ids] * table_scale) * scale, P values for each of the layers, one layer after another;
    the norm acts on those of each layer. x is the embedding of the row, as `Embed` left it. Of a
    row that has an embedding of its own in place of a token, the row `padding` of the table is
    taken. Leaves p (R, layers * P) for `LayerInputBranch`."""

    table: Linear  # (V, layers * P)
    projection: Linear  # (layers * P, D)
    norm: Norm  # (P,)
    table_scale: float
    projection_scale: float
    scale: float
    padding: int = 0

    @property
    def width(self) -> int:
        """P"""
        return len(self.norm.weight)

    def matrices(self) -> dict[str, Linear]:
        return {"layer_inputs": self.table, "layer_projection": self.projection}

    def cost(self) -> OperationCost:
        """One row of the table is read for each row."""
        return OperationCost(
            None,
            products=products_of(self.projection),
            row_bytes=self.table.nbytes // self.table.out_features,
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The inputs, which stay for the whole step."""
        return {"layer_inputs": sizes.rows * self.projection.out_features}
