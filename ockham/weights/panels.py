"""The layout that the compiled kernels read: panels of 16 outputs.

A matrix of rows (outputs, units) is stored as [panel][unit][16 outputs], where a unit is the few
consecutive inputs that one instruction multiplies: one fp32, two bf16, four int8, eight 4-bit
codes. The last panel is padded with outputs of zeros. See csrc/kernels/linear.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.weights.blocks import all_finite

T = TypeVar("T", bound=np.generic)

OUTPUTS = 16
"""Outputs of a panel."""

ROWS_AT_ONCE = 512
"""Rows that are quantised at a time: enough for all threads, and few enough to hold in fp32."""


def panels(out_features: int) -> int:
    """Panels that hold so many outputs."""
    return -(-out_features // OUTPUTS)


def to_panels(rows: npt.NDArray[T], unit: int) -> npt.NDArray[T]:
    """(16 P, units * unit) as (P, units, 16, unit)."""
    return rows.reshape(-1, OUTPUTS, rows.shape[1] // unit, unit).transpose(0, 2, 1, 3)


def from_panels(stored: npt.NDArray[T]) -> npt.NDArray[T]:
    """The opposite of `to_panels`, as a copy."""
    count, units, _, unit = stored.shape
    return stored.transpose(0, 2, 1, 3).reshape(count * OUTPUTS, units * unit)


def row_panels(
    blocks: Iterable[Array], out_features: int, in_features: int
) -> Iterator[tuple[int, Floats]]:
    """Blocks of rows regrouped to whole panels: (first panel, fp32 rows), zeros at the end.

    The rows are valid until the next are asked for. Raises ModelError if the blocks do not add up
    to the shape, or hold NaN or infinity.
    """
    staging = np.zeros((min(ROWS_AT_ONCE, panels(out_features) * OUTPUTS), in_features), np.float32)
    done = held = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != in_features:
            raise ModelError(
                f"rows of shape {block.shape} do not fit at row {done + held} of a matrix of shape "
                f"{(out_features, in_features)}."
            )
        if done + held + len(block) > out_features:
            raise ModelError(f"more than {out_features} rows were found.")
        if not all_finite(block):
            raise ModelError(
                f"NaN or infinity stands in rows {done + held} to {done + held + len(block) - 1}."
            )
        taken = 0
        while taken < len(block):
            count = min(len(block) - taken, len(staging) - held)
            staging[held : held + count] = block[taken : taken + count]
            taken += count
            held += count
            if held == len(staging):
                yield done // OUTPUTS, staging
                done += held
                held = 0
    if done + held != out_features:
        raise ModelError(f"only {done + held} of {out_features} rows were found.")
    if held:
        whole = panels(held) * OUTPUTS
        staging[held:whole] = 0.0
        yield done // OUTPUTS, staging[:whole]


def add_group(y: Floats, sums: Floats, scales: Floats) -> Floats:
    """fma(sums, scales, y), as the kernels add one group's sums.

    It is done in float64, whose two roundings differ from one in about one case of 2^29.
    """
    added: Floats = (y.astype(np.float64) + sums.astype(np.float64) * scales).astype(np.float32)
    return added


def quantise(x: Floats) -> tuple[Floats, Floats]:
    """The last axis as int8 with one scale: (values as floats, scales with a last axis of 1).

    scale = max|x| / 127 and value = round(x * (127 / max|x|)), ties to even; both zero where
    max|x| is below 2^-100. A row with NaN or infinity has the scale NaN.
    """
    most = np.abs(x).max(axis=-1, keepdims=True)
    finite, tiny = np.isfinite(most), most < np.float32(2.0**-100)
    most = np.where(finite & ~tiny, most, np.float32(127.0))
    values = np.where(finite & ~tiny, np.rint(x * (np.float32(127.0) / most)), np.float32(0.0))
    scales = np.where(tiny, np.float32(0.0), most / np.float32(127.0))
    return values, np.where(finite, scales, np.float32(np.nan))
