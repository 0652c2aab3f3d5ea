"""Packed matrices as the native core sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.core.errors import ConfigError
from ockham.core.seams import Linear
from ockham.kernels.memory import as_bytes
from ockham.kernels.native import core

if TYPE_CHECKING:
    from ockham.kernels import _cpu


def native_matrix(linear: Linear, pool: _cpu.ThreadPool) -> _cpu.Matrix:
    """A view of a packed matrix for the native core, which keeps its arrays alive.

    Matrices of plain floats are turned into panels here, in place, the first time. Raises
    ConfigError for a format that has no kernels.
    """
    kinds = {
        "fp32": core.Kind.FP32,
        "bf16": core.Kind.BF16,
        "int8": core.Kind.INT8,
        "int4": core.Kind.INT4,
        "q8_0": core.Kind.Q8_0,
        "q5_0": core.Kind.Q5_0,
        "q4_1": core.Kind.Q4_1,
        "q5_1": core.Kind.Q5_1,
        "q4_k": core.Kind.Q4_K,
        "q5_k": core.Kind.Q5_K,
        "q6_k": core.Kind.Q6_K,
    }
    if linear.format not in kinds:
        raise ConfigError(
            f"the native core has no kernels for weights in {linear.format!r}, only for "
            f"{', '.join(kinds)}: use the backend 'reference'."
        )

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
        kinds[linear.format],
        linear.out_features,
        linear.in_features,
        weight,
        group=_group(linear),
        scale=scale,
        zero=zero,
    )


def _group(linear: Linear) -> int:
    """Inputs that share a scale; 0 where scales are not by group."""
    scale = linear.arrays.get("scale")
    if scale is None or scale.ndim < 3:
        return 0
    inputs = linear.arrays["weight"].shape[1] * (8 if linear.format == "int4" else 4)
    return int(inputs // scale.shape[1])
