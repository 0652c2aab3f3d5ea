"""First come, first served, without letting a long prompt block the ones behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import Candidate


@register("policy", "fcfs", exact=True)
class FirstComeFirstServed:
    """Requests start in the order of their arrival; the latest gives way when pages run out.

    The oldest prompt that is still being read gets half of a step's room for prompts and whatever
    the others leave; the rest goes to the others in order. So a short prompt behind a long one
    waits for a few steps and not for the whole of it, and the oldest always advances.
    """

    name: ClassVar[str] = "fcfs"

    def order(self, waiting: Collection[Candidate]) -> Iterable[Candidate]:
        return waiting

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        if not prefilling:
            return []
        needs = [candidate.remaining_prefill for candidate in prefilling]
        eldest = min(range(len(needs)), key=lambda i: prefilling[i].order)
        shares = [0] * len(needs)
        shares[eldest] = min(needs[eldest], budget - budget // 2)
        left = budget - shares[eldest]
        for i in sorted(range(len(needs)), key=lambda i: prefilling[i].order):
            more = min(needs[i] - shares[i], left) if i != eldest else 0
            shares[i] += more
            left -= more
        shares[eldest] += min(needs[eldest] - shares[eldest], left)
        return shares

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return max(running, key=lambda c: c.order)
