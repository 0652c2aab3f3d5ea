"""One matrix whose rows are held in several formats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.seams import Linear


class StackedLinear:
    """Matrices of the same inputs, one below the other, each in its own format.

    Where a checkpoint stores projections that are multiplied together in different types. `format`
    joins their names by +; `arrays` are all of theirs, `0.weight` for the first one's weight.
    """

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)
        self.format = "+".join(part.format for part in parts)
        self.out_features = sum(part.out_features for part in parts)
        self.in_features = parts[0].in_features

    @property
    def arrays(self) -> dict[str, Array]:
        return {
            f"{number}.{name}": array
            for number, part in enumerate(self.parts)
            for name, array in part.arrays.items()
        }

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def matmul(self, x: Floats) -> Floats:
        return np.concatenate([part.matmul(x) for part in self.parts], axis=1)

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        found = np.empty((len(ids), self.in_features), np.float32)
        start = 0
        for part in self.parts:
            own = (ids >= start) & (ids < start + part.out_features)
            found[own] = part.rows(ids[own] - np.int32(start))
            start += part.out_features
        return found


def parts_of(linear: Linear) -> Sequence[Linear]:
    """The matrices that a matrix is stacked of: mostly itself alone."""
    return linear.parts if isinstance(linear, StackedLinear) else (linear,)
