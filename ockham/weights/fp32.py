"""Weights in single precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.registry import register
from ockham.core.seams import Arithmetic
from ockham.weights.rows_or_panels import FloatMatrix
from ockham.weights.ungrouped import Ungrouped


class Fp32Linear(FloatMatrix):
    """float32, 4 bytes a value; in panels, a unit is one input."""

    format = "fp32"

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__(out_features, in_features, np.float32, unit=1)

    def matmul(self, x: Floats) -> Floats:
        weight: Floats = self.block(0, self.out_features).view(np.float32)
        product: Floats = x @ weight.T
        return product

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        return self.chosen(ids).astype(np.float32)


@register("format", "fp32", exact=True)
class Fp32(Ungrouped):
    """Weights, activations and accumulation in fp32: 4 bytes a value, the oracle's precision."""

    name: ClassVar[str] = "fp32"
    arithmetic: ClassVar[Arithmetic] = "fp32"
    dtype: ClassVar[str | None] = "float32"
    activations: ClassVar[str] = "float32"

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        return 4 * FloatMatrix.packed_values(out_features, in_features, unit=1)

    def empty(self, out_features: int, in_features: int, zeros: bool = False) -> Fp32Linear:
        """A matrix of zeros in panels, for whoever fills it with panels."""
        matrix = Fp32Linear(out_features, in_features)
        matrix.see_as_panels()
        return matrix

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Fp32Linear:
        packed = Fp32Linear(out_features, in_features)
        packed.fill(blocks)
        return packed
