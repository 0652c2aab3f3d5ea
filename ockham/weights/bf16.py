"""Weights in bfloat16."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.registry import register
from ockham.core.seams import Arithmetic
from ockham.weights.blocks import round_to_bfloat16
from ockham.weights.rows_or_panels import FloatMatrix
from ockham.weights.ungrouped import Ungrouped

WIDENED_VALUES = 1 << 19
"""Weights widened to fp32 at a time (2 MiB): they stay in the second-level cache until used."""

_scratch = threading.local()


def _widening_scratch(values: int) -> Floats:
    """A float32 buffer of this thread, at least `values` long, reused from call to call."""
    buffer: Floats | None = getattr(_scratch, "buffer", None)
    if buffer is None or len(buffer) < values:
        buffer = _scratch.buffer = np.empty(values, np.float32)
    return buffer


class Bf16Linear(FloatMatrix):
    """bfloat16, 2 bytes a value; in panels, a unit is two inputs."""

    format = "bf16"

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__(out_features, in_features, ml_dtypes.bfloat16, unit=2)

    def matmul(self, x: Floats) -> Floats:
        """The inputs are rounded to bfloat16, products and sums are fp32.

        A block of rows is widened at a time, so that the matrix never exists in fp32.
        """
        x = round_to_bfloat16(x)
        product = np.empty((len(x), self.out_features), np.float32)
        step = min(max(1, WIDENED_VALUES // self.in_features), self.out_features)
        scratch = _widening_scratch(step * self.in_features)
        for start in range(0, self.out_features, step):
            block = self.block(start, min(start + step, self.out_features))
            wide = scratch[: block.size].reshape(block.shape)
            wide[...] = block
            np.matmul(x, wide.T, out=product[:, start : start + step])
        return product

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        return self.chosen(ids).astype(np.float32)


@register("format", "bf16", exact=True)
class Bf16(Ungrouped):
    """Weights in bf16 (2 bytes a value), inputs rounded to bf16 at each product, fp32 sums.

    The rounding of the inputs (nearest, ties to even) is part of the format's definition: it is
    what bf16 matrix units read. Sums, and everything between products, stay fp32.
    """

    name: ClassVar[str] = "bf16"
    arithmetic: ClassVar[Arithmetic] = "bf16"
    dtype: ClassVar[str | None] = "bfloat16"
    activations: ClassVar[str] = "bfloat16"

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        return 2 * FloatMatrix.packed_values(out_features, in_features, unit=2)

    def empty(self, out_features: int, in_features: int, zeros: bool = False) -> Bf16Linear:
        """A matrix of zeros in panels, for whoever fills it with panels."""
        matrix = Bf16Linear(out_features, in_features)
        matrix.see_as_panels()
        return matrix

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Bf16Linear:
        packed = Bf16Linear(out_features, in_features)
        packed.fill(blocks)
        return packed
