"""What adapters add to products, in NumPy: the oracle of the compiled sums of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import AdapterDtype, LowRank
from ockham.kernels.ops import Program, role_of


class Sum(NamedTuple):
    """scale * B (A x), over the outputs from `first` on."""

    first: int
    scale: float
    a: Floats  # (rank, inputs)
    b: Floats  # (outputs, rank)


class ReferenceAdapter:
    """The sums of one adapter by the role of the matrix, their values rounded to its dtype."""

    def __init__(self, sums: Sequence[LowRank], dtype: AdapterDtype, program: Program) -> None:
        """Raises ValueError for a sum that does not fit the program."""
        self.of: dict[str, list[Sum]] = {}
        self.nbytes = 0
        matrices = {
            role_of(op, name): op.matrices()[name] for op in program.ops for name in op.adaptable
        }
        for each in sums:
            part = each.part
            matrix = matrices.get(part.role)
            if (
                matrix is None
                or part.inputs != matrix.in_features
                or not 0 <= part.first <= part.first + part.outputs <= matrix.out_features
            ):
                raise ValueError(f"what is added to the matrix {part.role} does not fit it.")
            a, b = each.read()
            a, b = rounded(a, dtype), rounded(b.T, dtype).T
            self.of.setdefault(part.role, []).append(Sum(part.first, each.scale, a, b))
            self.nbytes += a.nbytes + b.nbytes


def rounded(values: Floats, dtype: AdapterDtype) -> Floats:
    """Values (rank, n) as a dtype holds them: "int8" with one scale for each rank."""
    if dtype == "float32":
        return np.asarray(values, np.float32)
    if dtype == "int8":
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        scale[scale < 2.0**-100 / 127] = 1
        whole: Floats = (np.rint(values / scale) * scale).astype(np.float32)
        return whole
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    even = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (even & np.uint32(0xFFFF0000)).view(np.float32)
