"""What is added to the products of rounded matrices for all rows: `Correction`."""

from __future__ import annotations

from typing import ClassVar, Protocol

from ockham.core.arrays import Floats


class Correction(Protocol):
    """Fits a sum of low rank, B (A x), to what rounding a matrix takes from its products with x.

    `rank` is the rank of the sum. `needs_text` says that it is fitted to the inputs that the matrix
    has on a text."""

    name: ClassVar[str]
    needs_text: ClassVar[bool]

    @property
    def rank(self) -> int: ...

    def fit(self, error: Floats, moments: Floats | None) -> tuple[Floats, Floats]:
        """A (r, K) and B (N, r) for an error W - Q of a matrix (N, K); r is the rank, or N or K
        where one of them is less. `moments` (K, K) is the sum of x^T x over inputs x (1, K); None
        where no text is read. Raises ModelError for moments that are not finite."""
        ...
