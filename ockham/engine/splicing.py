"""A splice that a sequence takes over: some of its cells are given, the others are computed."""

from __future__ import annotations

import numpy as np

from ockham.core.seams import Splice
from ockham.core.step import Ints


class Splicing:
    """What one sequence takes over while its prompt is computed. `computed`, wherever it is asked
    for, is how many of the sequence's cells are valid already."""

    __slots__ = ("splice", "todo")

    def __init__(self, splice: Splice, first: int, target: int) -> None:
        """All cells from `first` to `target` are computed, whatever the splice gives of them."""
        rest = np.arange(first, target, dtype=np.int32)
        self.splice = splice
        self.todo: Ints = np.concatenate((splice.todo[splice.todo < min(first, target)], rest))
        """The cells that are to be computed; those between them are given."""

    def first_given(self, computed: int) -> int | None:
        """The first cell that is given; None if all are computed after all."""
        in_place = self.todo == np.arange(computed, computed + len(self.todo))
        return None if in_place.all() else computed + int(np.argmin(in_place))

    def next_cells(self, computed: int, rows: int) -> Ints:
        """The cells of the next `rows` rows."""
        first = int(np.searchsorted(self.todo, computed))
        return self.todo[first : first + rows]

    def remaining(self, computed: int) -> int:
        """Rows that are left to compute."""
        return len(self.todo) - int(np.searchsorted(self.todo, computed))
