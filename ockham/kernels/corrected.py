"""A rounded matrix with a sum of low rank that is added to its products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.seams import FillableLinear
from ockham.kernels.memory import allocate_array

PREFIX = "correction."
"""The names of the sum's arrays among those of the matrix."""

MOST = np.float32(127)


class CorrectedLinear:
    """y = Q x + B (factors * (A x)), where Q is `base` (N, K), in whatever format and layout.

    A is int8 (rank, K), B int8 (N, rank), and `factors` float32 (rank,) holds the scales of both.
    """

    def __init__(self, base: FillableLinear, rank: int) -> None:
        """Zeroed arrays, of which no page is touched yet."""
        self.base, self.rank = base, rank
        self.format, self.group, self.zeros = base.format, base.group, base.zeros
        self.out_features, self.in_features = base.out_features, base.in_features
        self.arrays: dict[str, Array] = {
            **base.arrays,
            f"{PREFIX}a": allocate_array((rank, base.in_features), np.int8),
            f"{PREFIX}b": allocate_array((base.out_features, rank), np.int8),
            f"{PREFIX}factors": allocate_array((rank,), np.float32),
        }

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def set_sum(self, a: Floats, b: Floats) -> None:
        """The sum B (A x) of floats A (rank, K) and B (N, rank), each row of A and each column of B
        rounded to int8 with the scale max / 127."""
        codes_a, scales_a = _rounded(a)
        codes_b, scales_b = _rounded(b.T)
        self.arrays[f"{PREFIX}a"][...] = codes_a
        self.arrays[f"{PREFIX}b"][...] = codes_b.T
        self.arrays[f"{PREFIX}factors"][...] = scales_a * scales_b

    def sum(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], Floats]:
        """A, B and the factors, as they are stored."""
        arrays = [self.arrays[PREFIX + name] for name in ("a", "b", "factors")]
        a, b = (array.view(np.int8) for array in arrays[:2])
        factors: Floats = arrays[2].view(np.float32)
        return a, b, factors

    def matmul(self, x: Floats) -> Floats:
        a, b, factors = self.sum()
        inner: Floats = (x @ a.astype(np.float32).T) * factors
        added: Floats = inner @ b.astype(np.float32).T
        return self.base.matmul(x) + added

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        a, b, factors = self.sum()
        found: Floats = self.base.rows(ids) + (b[ids] * factors) @ a.astype(np.float32)
        return found


def correction_bytes(out_features: int, in_features: int, rank: int) -> int:
    """Bytes of the sum of a matrix."""
    return rank * (out_features + in_features + 4)


def _rounded(rows: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Rows as int8, and their scales; both zero where a row is nearly nothing."""
    most: Floats = np.abs(rows).max(axis=1).astype(np.float32)
    held = most >= np.float32(2.0**-60)
    inverse = np.where(held, MOST / np.where(held, most, np.float32(1)), np.float32(0))
    codes: npt.NDArray[np.int8] = np.rint(rows * inverse[:, None]).astype(np.int8)
    scales: Floats = np.where(held, most / MOST, np.float32(0)).astype(np.float32)
    return codes, scales
