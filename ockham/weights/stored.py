"""Packed matrices as they are written to disk: the arrays of a Linear, in panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ockham.core.arrays import Array
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import find, techniques
from ockham.core.seams import Format, Linear
from ockham.kernels.native import core, packing_pool
from ockham.weights.panels import to_panels
from ockham.weights.rows_or_panels import FloatMatrix, panels_in_place
from ockham.weights.stacked import StackedLinear, parts_of


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """What must be known of a packed matrix besides its arrays' bytes."""

    format: str
    out_features: int
    in_features: int
    group: int = 0
    zeros: bool = False
    parts: tuple[StoredMatrix, ...] = ()
    """Of a matrix that is stacked of several: what they are."""

    def made(self) -> Format:
        """The format, as it has to be for this matrix. Raises ValueError if there is none."""
        for technique in techniques("format"):
            if technique.name == self.format:
                kind: type[Format] = technique.cls
                return kind.of_group(self.group)
        raise ValueError(f"its format is {self.format!r}")

    def blank(self) -> Linear:
        """The matrix with zeroed arrays in panels, of which no page is touched yet."""
        if self.parts:
            return StackedLinear([part.blank() for part in self.parts])
        return self.made().empty(self.out_features, self.in_features, self.zeros)

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def stored_matrix(linear: Linear) -> StoredMatrix:
    """The description of a packed matrix. Raises ModelError for a format that is not written to
    disk."""
    if isinstance(linear, StackedLinear):
        return stacked([stored_matrix(part) for part in linear.parts])
    try:
        kind: type[Format] = find("format", linear.format).cls
    except ConfigError:
        raise ModelError(
            f"weights in {linear.format!r} cannot be written to a directory."
        ) from None
    group, zeros = kind.group_of(linear), "zero" in linear.arrays
    return StoredMatrix(linear.format, linear.out_features, linear.in_features, group, zeros)


def stacked(parts: Sequence[StoredMatrix]) -> StoredMatrix:
    """The description of a matrix that is stacked of these."""
    rows = sum(part.out_features for part in parts)
    names = "+".join(part.format for part in parts)
    return StoredMatrix(names, rows, parts[0].in_features, parts=tuple(parts))


def turn_into_panels(linear: Linear) -> None:
    """Turn what stands in rows into the panels that are stored, in place."""
    for part in parts_of(linear):
        if isinstance(part, FloatMatrix):
            part.to_panels(panels_in_place if core is None else _native_panels)


def stored_arrays(linear: Linear) -> dict[str, Array]:
    """The arrays of a matrix as they are stored: in panels, which are a copy where it stands in
    rows and stays so."""
    arrays = linear.arrays
    for number, part in enumerate(parts_of(linear)):
        if isinstance(part, FloatMatrix) and not part.in_panels:
            name = f"{number}.weight" if isinstance(linear, StackedLinear) else "weight"
            panels = to_panels(part.arrays["weight"], part.unit)
            arrays = {**arrays, name: np.ascontiguousarray(panels)}
    return arrays


def read_record(values: Any) -> StoredMatrix:
    """The opposite of `record`. Raises ValueError for what it cannot have given."""
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    try:
        parts = tuple(map(read_record, values.get("parts", ())))
        matrix = StoredMatrix(**{**values, "parts": parts})
    except TypeError as error:
        raise ValueError(str(error)) from None
    sizes = (matrix.out_features, matrix.in_features)
    if not all(type(size) is int and 0 < size < 1 << 40 for size in sizes):
        raise ValueError(f"its shape is {sizes}")
    if matrix.parts:
        shapes = [(part.out_features, part.in_features) for part in matrix.parts]
        if (sum(rows for rows, _ in shapes), {columns for _, columns in shapes}) != (
            matrix.out_features,
            {matrix.in_features},
        ):
            raise ValueError(f"its parts have the shapes {shapes}")
        return matrix
    if type(matrix.group) is not int:
        raise ValueError(f"its group is {matrix.group!r}")
    matrix.made()
    return matrix


def _native_panels(weight: Any, outputs: int, units: int, unit_bytes: int) -> None:
    core.to_panels(packing_pool(), weight, outputs, units, unit_bytes)
