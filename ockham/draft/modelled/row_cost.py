"""What a step of a draft model costs, learned from the steps that it runs."""

from __future__ import annotations

_FORGOTTEN = 0.03
"""How much of what is known each step replaces."""


class RowCost:
    """Seconds of a step as a line over its rows: least squares over steps that fade as they age.

    Where all steps had the same number of rows, another row is thought to cost nothing more: a
    small model's step is mostly its weights, and the first wider step corrects it.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows_squared = self._both = 0.0

    @property
    def known(self) -> bool:
        """Whether a step has been seen."""
        return self._weight > 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        kept = 1.0 - _FORGOTTEN
        self._weight = kept * self._weight + 1.0
        self._rows = kept * self._rows + rows
        self._seconds = kept * self._seconds + seconds
        self._rows_squared = kept * self._rows_squared + rows * rows
        self._both = kept * self._both + rows * seconds

    def of(self, rows: int) -> float:
        """Seconds of a step of so many rows; 0 as long as nothing is known."""
        if not self.known:
            return 0.0
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        spread = self._rows_squared / self._weight - mean_rows**2
        shared = self._both / self._weight - mean_rows * mean_s
        slope = max(0.0, shared / spread) if spread > 1e-6 else 0.0
        slope = min(slope, mean_s / mean_rows)  # a step of no rows takes no negative time
        return mean_s + slope * (rows - mean_rows)
