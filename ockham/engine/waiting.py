"""The sequences that wait, in the order of arrival."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from ockham.engine.sequence import Sequence


class Waiting:
    """A queue that a sequence may leave from anywhere, however many wait, and to which one that was
    preempted comes back at its place."""

    def __init__(self) -> None:
        self._orders: list[tuple[int, int]] = []
        self._sequences: dict[tuple[int, int], Sequence] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def __contains__(self, sequence: object) -> bool:
        return isinstance(sequence, Sequence) and self._sequences.get(sequence.order) is sequence

    def __iter__(self) -> Iterator[Sequence]:
        return (self._sequences[order] for order in self._orders)

    @property
    def last(self) -> Sequence:
        """The one that arrived last."""
        return self._sequences[self._orders[-1]]

    def add(self, sequence: Sequence) -> None:
        at = bisect_left(self._orders, sequence.order)
        self._orders.insert(at, sequence.order)
        self._sequences[sequence.order] = sequence

    def remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.order]
        del self._orders[bisect_left(self._orders, sequence.order)]
