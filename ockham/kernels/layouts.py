"""How matrices of weights lie in memory: in rows, as their formats mean them, or as a backend wants
them.

A layout is found by its name wherever a file names one. Only the rows are defined here; what the
compiled kernels read is in cpu_layout.py.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.seams import Format, Layout, Values
from ockham.kernels.memory import allocate_array
from ockham.kernels.native import core

DTYPES: dict[str, npt.DTypeLike] = {
    "uint8": np.uint8,
    "int8": np.int8,
    "uint16": np.uint16,
    "int16": np.int16,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}
"""By the names that formats and files use."""


class HeldLinear:
    """A matrix in some layout: what must be known of it beside its arrays."""

    def __init__(
        self,
        weight_format: Format,
        out_features: int,
        in_features: int,
        zeros: bool,
        arrays: dict[str, Array],
    ) -> None:
        self.format: str = weight_format.name
        self.group = weight_format.group
        self.zeros = zeros
        self.out_features, self.in_features = out_features, in_features
        self.arrays = arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class RowsLinear(HeldLinear):
    """A matrix in rows: `arrays` has each field of its format, (out_features, ...). It multiplies
    as the format says that a product is."""

    def __init__(
        self,
        weight_format: Format,
        out_features: int,
        in_features: int,
        zeros: bool,
        arrays: dict[str, Array],
    ) -> None:
        super().__init__(weight_format, out_features, in_features, zeros, arrays)
        self.meaning = weight_format

    def matmul(self, x: Floats) -> Floats:
        return self.meaning.matmul(self.arrays, x)

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        chosen = {name: array[ids] for name, array in self.arrays.items()}
        return self.meaning.decode(chosen, self.in_features)

    def fill(self, first: int, values: Values) -> None:
        for name, array in self.arrays.items():
            array[first : first + len(values[name])] = values[name]


class RowsLayout:
    """Every field of every row, one row below the other: for the reference backend, and for formats
    that no kernels hold."""

    name = "rows-1"
    multiple = 1
    cached = False

    def holds(self, format_name: str) -> bool:
        return True

    def nbytes(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool = False
    ) -> int:
        fields = weight_format.fields(in_features, zeros).values()
        return out_features * sum(
            int(np.prod(field.shape, dtype=np.int64)) * np.dtype(DTYPES[field.dtype]).itemsize
            for field in fields
        )

    def blank(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool = False
    ) -> RowsLinear:
        arrays: dict[str, Array] = {
            name: allocate_array((out_features, *field.shape), DTYPES[field.dtype])
            for name, field in weight_format.fields(in_features, zeros).items()
        }
        return RowsLinear(weight_format, out_features, in_features, zeros, arrays)


ROWS = RowsLayout()


def find_layout(name: str) -> Layout | None:
    """The layout of this name that can be read here; None if there is none."""
    if name == ROWS.name:
        return ROWS
    if core is None:
        return None
    from ockham.kernels.cpu_layout import PANELS

    return PANELS if name == PANELS.name else None
