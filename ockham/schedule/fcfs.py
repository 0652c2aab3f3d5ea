"""First come, first served, within each tenant's turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import Candidate
from ockham.schedule.common import share_rows
from ockham.schedule.tenants import Order, Tenants


@register("policy", "fcfs", exact=True)
class FirstComeFirstServed:
    """Requests start by priority, then in the order of arrival; tenants take turns.

    Those whose prefix another is computing are passed by, so that it is computed once. When pages
    run out, the latest of the tenant that holds most gives way.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "fcfs"

    def __init__(self) -> None:
        self._tenants = Tenants()

    def add(self, candidate: Candidate) -> None:
        self._tenants.add(candidate)

    def remove(self, candidate: Candidate) -> None:
        self._tenants.remove(candidate)

    def begin(self, candidate: Candidate) -> None:
        self._tenants.begin(candidate)

    def end(self, candidate: Candidate) -> None:
        self._tenants.end(candidate)

    def order(
        self,
        fits: Callable[[Candidate], bool],
        waits: Callable[[Candidate], int],
        full: bool,
    ) -> Iterator[Candidate]:
        done: set[Order] = set()
        turns = self._tenants.turns(lambda each: each.order not in done and fits(each))
        while (tenant := turns.tenant()) is not None:
            candidate = turns.head(tenant)
            assert candidate is not None, "a tenant has a turn only if it has a candidate"
            done.add(candidate.order)
            if waits(candidate):
                turns.waits(candidate)
            else:
                yield candidate

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        return share_rows(prefilling, budget)

    @property
    def pressing(self) -> bool:
        return self._tenants.pressing

    def gives_way(self, candidate: Candidate, running: Sequence[Candidate]) -> Candidate | None:
        return self._tenants.gives_way(candidate, running)

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return self._tenants.victim(running)
