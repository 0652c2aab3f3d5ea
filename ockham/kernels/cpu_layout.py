"""Matrices of weights as the compiled kernels read them: in panels of 16 outputs (csrc/kinds/).

What a matrix's arrays are, and how rows become panels, is said by the kind that bears the name of
the matrix's format. No format is named here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Format, Linear, Values
from ockham.kernels.corrected import CorrectedLinear
from ockham.kernels.layouts import DTYPES, HeldLinear, RowsLinear
from ockham.kernels.memory import allocate_array, as_bytes
from ockham.kernels.native import chosen_isa, core, packing_pool

if TYPE_CHECKING:
    from ockham.kernels import _cpu


class PanelsLinear(HeldLinear):
    """A matrix in panels. `native` is what the core multiplies with: a view of `arrays`, which stay
    where they are."""

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
        self.native = core.matrix(
            weight_format.name,
            out_features,
            in_features,
            as_bytes(arrays["weight"]),
            group=weight_format.group,
            scale=_flat(arrays.get("scale")),
            zero=_flat(arrays.get("zero")),
        )

    def matmul(self, x: Floats) -> Floats:
        """As the kernels multiply."""
        x = np.ascontiguousarray(x, np.float32)
        return np.asarray(core.linear(packing_pool(), chosen_isa(), self.native, x))

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        return np.asarray(core.rows(self.native, np.ascontiguousarray(ids, np.int64)))

    def fill(self, first: int, values: Values) -> None:
        rows = len(next(iter(values.values())))
        flat = {name: as_bytes(np.ascontiguousarray(array)) for name, array in values.items()}
        core.pack(packing_pool(), self.native, first, rows, flat)

    def copied(self) -> PanelsLinear:
        """The same matrix in memory of its own."""
        arrays: dict[str, Array] = {}
        for name, array in self.arrays.items():
            arrays[name] = allocate_array(array.shape, array.dtype)
            arrays[name][...] = array
        shape = (self.out_features, self.in_features)
        return PanelsLinear(self.meaning, *shape, self.zeros, arrays)


class PanelsLayout:
    """Panels, of which the last is padded: with rows of weights of zero."""

    name = "cpu-1"
    multiple = 16
    cached = True

    def holds(self, format_name: str) -> bool:
        return format_name in core.kinds()

    def nbytes(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool = False
    ) -> int:
        arrays = self._arrays(weight_format, out_features, in_features, zeros)
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(DTYPES[dtype]).itemsize
            for _, dtype, shape in arrays
        )

    def blank(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool = False
    ) -> PanelsLinear:
        arrays: dict[str, Array] = {
            name: allocate_array(tuple(shape), DTYPES[dtype])
            for name, dtype, shape in self._arrays(weight_format, out_features, in_features, zeros)
        }
        return PanelsLinear(weight_format, out_features, in_features, zeros, arrays)

    def _arrays(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool
    ) -> list[tuple[str, str, list[int]]]:
        weight_format.fields(in_features, zeros)  # the format's own sentence comes first
        if not self.holds(weight_format.name):
            raise ConfigError(
                f"the native core has no kernels for weights in {weight_format.name!r}, only for "
                f"{', '.join(core.kinds())}: use the backend 'reference'."
            )
        shape = (out_features, in_features)
        try:
            return core.packed_arrays(
                weight_format.name, *shape, group=weight_format.group, zeros=zeros
            )
        except ValueError as error:
            raise ModelError(str(error)) from None


PANELS = PanelsLayout()


def in_panels(linear: Linear) -> PanelsLinear:
    """A matrix in panels: itself, or a copy of one that stands in rows. Raises ConfigError for a
    format that has no kernels."""
    if isinstance(linear, PanelsLinear):
        return linear
    if not isinstance(linear, RowsLinear):
        raise TypeError("only matrices in rows or panels can be multiplied by the native core.")
    shape = (linear.out_features, linear.in_features)
    found = PANELS.blank(linear.meaning, *shape, linear.zeros)
    missing = -linear.out_features % PANELS.multiple
    rows: Values = {}
    for name, array in linear.arrays.items():
        rows[name] = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    found.fill(0, rows)
    return found


def native_matrix(linear: Linear) -> _cpu.Matrix:
    """A matrix as the native core takes it, which keeps its arrays alive, with what is added to its
    products. Raises as `in_panels` does."""
    if isinstance(linear, CorrectedLinear):
        return core.corrected(in_panels(linear.base).native, *linear.sum())
    return in_panels(linear).native


def _flat(array: Array | None) -> npt.NDArray[np.uint8] | None:
    return None if array is None else as_bytes(array)
