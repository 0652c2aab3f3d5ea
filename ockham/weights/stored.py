"""What must be known of a packed matrix beside its arrays, where it lies in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ockham.core.errors import ModelError
from ockham.core.registry import techniques
from ockham.core.seams import Format, Layout, Linear
from ockham.kernels.corrected import CorrectedLinear
from ockham.kernels.layouts import HeldLinear
from ockham.weights.stacked import StackedLinear


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
    rank: int = 0
    """Of the sum that is added to its products; 0 for none."""

    def made(self) -> Format:
        """The format, as it has to be for this matrix. Raises ValueError if there is none."""
        for technique in techniques("format"):
            if technique.name == self.format:
                kind: type[Format] = technique.cls
                return kind.of_group(self.group)
        raise ValueError(f"its format is {self.format!r}")

    def blank(self, layout: Layout) -> Linear:
        """The matrix with zeroed arrays in a layout, of which no page is touched yet. Raises as
        `Layout.blank` does."""
        if self.parts:
            return StackedLinear([part.blank(layout) for part in self.parts])
        blank = layout.blank(self.made(), self.out_features, self.in_features, self.zeros)
        if not self.rank:
            return blank
        return CorrectedLinear(blank, self.rank)

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON. Only matrices that are corrected say their rank."""
        values = asdict(self)
        for each in (values, *values["parts"]):
            if not each["rank"]:
                del each["rank"]
        return values


def stored_matrix(linear: Linear) -> StoredMatrix:
    """The description of a packed matrix. Raises ModelError for one that no layout holds."""
    if isinstance(linear, StackedLinear):
        return stacked([stored_matrix(part) for part in linear.parts])
    if isinstance(linear, CorrectedLinear):
        return replace(stored_matrix(linear.base), rank=linear.rank)
    if not isinstance(linear, HeldLinear):
        raise ModelError(f"weights in {linear.format!r} cannot be written to a directory.")
    shape = (linear.out_features, linear.in_features)
    return StoredMatrix(linear.format, *shape, linear.group, linear.zeros)


TRIAL_ROWS, TRIAL_INPUTS = 16, 512


def check_packs(made: Format) -> None:
    """Raises ModelError for a format that packs no weights: some only hold what a file has."""
    made.pack(TRIAL_ROWS, TRIAL_INPUTS, [np.ones((TRIAL_ROWS, TRIAL_INPUTS), np.float32)])


def stacked(parts: Sequence[StoredMatrix]) -> StoredMatrix:
    """The description of a matrix that is stacked of these."""
    rows = sum(part.out_features for part in parts)
    names = "+".join(part.format for part in parts)
    return StoredMatrix(names, rows, parts[0].in_features, parts=tuple(parts))


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
    if type(matrix.rank) is not int or not 0 <= matrix.rank <= min(sizes):
        raise ValueError(f"its rank is {matrix.rank!r}")
    matrix.made()
    return matrix
