"""First come, first served, without letting a long prompt block the ones behind it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import Candidate
from ockham.schedule.common import MOST_WAITS, latest, share_rows


@register("policy", "fcfs", exact=True)
class FirstComeFirstServed:
    """Requests start in the order of their arrival; the latest gives way when pages run out.

    Those whose prefix another is computing are passed by, so that it is computed once.
    """

    name: ClassVar[str] = "fcfs"

    def add(self, candidate: Candidate) -> None:
        return None

    def remove(self, candidate: Candidate) -> None:
        return None

    def order(
        self, waiting: Collection[Candidate], waits: Callable[[Candidate], int]
    ) -> Iterator[Candidate]:
        passed = 0
        for candidate in waiting:
            if not waits(candidate):
                yield candidate
                continue
            passed += 1
            if passed == MOST_WAITS:
                return

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        return share_rows(prefilling, budget)

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return latest(running)
