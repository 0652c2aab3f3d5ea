"""Matrices of plain floating-point values, which stand in rows until a backend wants panels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.kernels.memory import allocate_array, as_bytes
from ockham.weights.blocks import fill
from ockham.weights.panels import OUTPUTS, from_panels, panels

Repack = Callable[[npt.NDArray[np.uint8], int, int, int], None]
"""Turns flat bytes of (outputs, units) into panels in place: bytes, outputs, units, unit_bytes."""


def panels_in_place(
    weight: npt.NDArray[np.uint8], outputs: int, units: int, unit_bytes: int
) -> None:
    """A `Repack` without compiled code."""
    for panel in weight.reshape(outputs // OUTPUTS, -1):
        rows = panel.reshape(OUTPUTS, units, unit_bytes)
        panel[...] = rows.swapaxes(0, 1).reshape(-1).copy()


class FloatMatrix:
    """`arrays["weight"]`: rows (16 P, U * unit), or after `to_panels` (P, U, 16, unit), for P
    panels of U units, padded with zeros. `weight` is the part of the rows that is no padding.

    Turning rows into panels needs no second copy: 16 rows and a panel take the same bytes.
    """

    def __init__(
        self, out_features: int, in_features: int, dtype: npt.DTypeLike, unit: int
    ) -> None:
        self.out_features, self.in_features = out_features, in_features
        self.unit = unit
        units = -(-in_features // unit)
        self._memory = allocate_array((panels(out_features) * OUTPUTS, units * unit), dtype)
        self.weight: Array = self._memory[:out_features, :in_features]
        self.arrays: dict[str, Array] = {"weight": self._memory}
        self.in_panels = False

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def fill(self, blocks: Iterable[Array]) -> None:
        fill(self.weight, blocks)

    def to_panels(self, repack: Repack) -> None:
        """Turn the rows into panels, once."""
        if self.in_panels:
            return
        outputs, columns = self._memory.shape
        units = columns // self.unit
        repack(as_bytes(self._memory), outputs, units, self.unit * self._memory.itemsize)
        self.see_as_panels()

    def see_as_panels(self) -> None:
        """Take the memory for panels as it is: for whoever fills it with panels."""
        outputs, columns = self._memory.shape
        units = columns // self.unit
        self.weight = self._memory.reshape(outputs // OUTPUTS, units, OUTPUTS, self.unit)
        self.arrays["weight"] = self.weight
        self.in_panels = True

    def block(self, start: int, stop: int) -> Array:
        """Rows [start, stop)."""
        if not self.in_panels:
            return self.weight[start:stop]
        first, last = start // OUTPUTS, panels(stop)
        rows = from_panels(self.weight[first:last])
        return rows[start - first * OUTPUTS : stop - first * OUTPUTS, : self.in_features]

    def chosen(self, ids: npt.NDArray[np.int32]) -> Array:
        """Rows `ids`."""
        if not self.in_panels:
            return self.weight[ids]
        units = self.weight[ids // OUTPUTS, :, ids % OUTPUTS]
        return units.reshape(len(ids), -1)[:, : self.in_features]

    @staticmethod
    def packed_values(out_features: int, in_features: int, unit: int) -> int:
        """Values that are stored for a matrix of this shape."""
        return panels(out_features) * OUTPUTS * (-(-in_features // unit) * unit)
