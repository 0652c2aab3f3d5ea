"""Packed matrices as the native core sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.core.errors import ConfigError
from ockham.core.registry import find
from ockham.core.seams import Format, Linear
from ockham.kernels.memory import as_bytes
from ockham.kernels.native import core

if TYPE_CHECKING:
    from ockham.kernels import _cpu


def native_matrix(linear: Linear, pool: _cpu.ThreadPool) -> _cpu.Matrix:
    """A view of a packed matrix for the native core, which keeps its arrays alive.

    Matrices of plain floats are turned into panels here, in place, the first time. Raises
    ConfigError for a format that has no kernels.
    """
    kinds = core.Kind.__members__
    kind = kinds.get(linear.format.upper())
    if kind is None:
        raise ConfigError(
            f"the native core has no kernels for weights in {linear.format!r}, only for "
            f"{', '.join(kinds).lower()}: use the backend 'reference'."
        )
    weight_format: type[Format] = find("format", linear.format).cls

    def repack(weight: npt.NDArray[np.uint8], outputs: int, units: int, unit_bytes: int) -> None:
        core.to_panels(pool, weight, outputs, units, unit_bytes)

    to_panels = getattr(linear, "to_panels", None)
    if to_panels is not None:
        to_panels(repack)

    def stored(name: str) -> npt.NDArray[np.uint8] | None:
        array: Array | None = linear.arrays.get(name)
        return None if array is None else as_bytes(array)

    weight, scale, zero = stored("weight"), stored("scale"), stored("zero")
    return core.matrix(
        kind,
        linear.out_features,
        linear.in_features,
        weight,
        group=weight_format.group_of(linear),
        scale=scale,
        zero=zero,
    )
