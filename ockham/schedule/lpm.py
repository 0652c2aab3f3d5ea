"""Those that share a prefix run together: longest prefix match, with bounded overtaking."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from ockham.core.registry import register
from ockham.core.seams import Candidate
from ockham.schedule.common import share_rows
from ockham.schedule.tenants import Order, Tenant, Tenants, Turns

MOST_OVERTAKEN = 64
"""Sequences of a tenant that may begin before the first of its own that waits, since it is the
first. So one that finds n others of its tenant waiting begins after at most
(n + 1) * (MOST_OVERTAKEN + 1) of them."""
LEAST_SHARED = 16
"""Fewer tokens in common are not worth leaving the order of arrival for."""
MOST_BESIDE = 16
"""Candidates that are passed by on either side of the last in sorted order, in search of one that
may begin."""


class _Entry(NamedTuple):
    """A request that waits. Sorted by `key`, those with the same beginning stand together."""

    key: bytes
    order: Order
    candidate: Candidate


@register("policy", "lpm", exact=True, paper="331")
class LongestPrefixMatch:
    """Requests that share a prefix run one after another, while its state is held.

    After each request comes the one that waits and has the most tokens in common with it, so that
    a prefix is used up before another pushes it out: the longest-prefix-match order of SGLang
    (arXiv:2312.07104), found in a sorted list at the cost of a binary search, whatever waits. Only
    tenants that are due are chosen from, and of each only the requests of the best priority. Where
    nothing is shared it is the order of `fcfs`. The oldest of a tenant is overtaken 64 times by
    others of its own at most; what was preempted goes first. Of an offline batch that is larger
    than the memory, no branch is begun while requests of the one before wait for its prefix.
    """

    saves: ClassVar[tuple[str, ...]] = ("prompt rows", "queueing")
    name: ClassVar[str] = "lpm"

    def __init__(self) -> None:
        self._tenants = Tenants()
        self._entries: list[_Entry] = []
        self._of: dict[Order, _Entry] = {}
        self._last: _Entry | None = None
        """Of the request that was admitted last."""

    def add(self, candidate: Candidate) -> None:
        entry = _Entry(_key(candidate), candidate.order, candidate)
        self._of[candidate.order] = entry
        insort(self._entries, entry)
        self._tenants.add(candidate)

    def remove(self, candidate: Candidate) -> None:
        del self._entries[self._place(self._of.pop(candidate.order))]
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
        done = _Places()  # what was admitted, or need not be looked at in this step
        turns = self._tenants.turns(
            lambda each: fits(each) and self._place(self._of[each.order]) not in done
        )
        least_common = 0
        while (tenant := turns.tenant()) is not None:
            chosen = self._choose(tenant, turns, done, full)
            entry = self._of[chosen.order]
            common = 0 if self._last is None else _shared(self._last, entry)
            if chosen.orderly and common < least_common:
                return
            shared = waits(chosen)
            if shared:
                turns.waits(chosen)
                least_common = max(least_common, common // 2)
                done.add(*self._range(entry, shared))
                continue
            preempted = chosen.computed_once > 0
            yield chosen
            place = self._place(entry)
            done.add(place, place + 1)
            if not preempted:
                self._last = entry

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        return share_rows(prefilling, budget)

    @property
    def pressing(self) -> bool:
        return self._tenants.pressing

    def gives_way(self, candidate: Candidate, running: Sequence[Candidate]) -> Candidate | None:
        return self._tenants.gives_way(candidate, running)

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return self._tenants.victim(running)

    def _choose(self, tenant: Tenant, turns: Turns, done: _Places, full: bool) -> Candidate:
        """Of the tenant's oldest, and those beside the last in sorted order that may come before
        it, the one that has the most in common with the last; the oldest, if no other has more, or
        if there is no place but that of another, which only the tenant may be due."""
        elder = turns.head(tenant)
        assert elder is not None, "a tenant has a turn only if it has a candidate"
        overdue = tenant.overtaken >= MOST_OVERTAKEN
        if self._last is None or full or overdue or elder.computed_once:
            return elder
        best, most = elder, _shared(self._last, self._of[elder.order])
        at = self._place(self._last)
        for beside in (self._after(at, done), self._before(at, done)):
            for entry in islice(beside, MOST_BESIDE):
                shared = _shared(self._last, entry)
                if shared <= most:
                    break  # farther away no other has more
                if turns.may_be_next(entry.candidate, MOST_OVERTAKEN):
                    best, most = entry.candidate, shared
                    break
        return best

    def _after(self, at: int, done: _Places) -> Iterator[_Entry]:
        """What stands from a place on, but for what is done."""
        while (at := done.after(at)) < len(self._entries):
            yield self._entries[at]
            at += 1

    def _before(self, at: int, done: _Places) -> Iterator[_Entry]:
        """What stands before a place, the nearest first, but for what is done."""
        while (at := done.before(at)) >= 0:
            yield self._entries[at]

    def _place(self, entry: _Entry) -> int:
        """Where an entry stands, or would."""
        return bisect_left(self._entries, entry)

    def _range(self, entry: _Entry, shared: int) -> tuple[int, int]:
        """The places of those that have `shared` tokens in common with an entry."""
        if shared < LEAST_SHARED:
            place = self._place(entry)
            return place, place + 1
        beginning = entry.key[: len(entry.key) + 4 * (shared - len(entry.candidate.prompt))]

        def of(other: _Entry) -> bytes:
            return other.key[: len(beginning)]

        return (
            bisect_left(self._entries, beginning, key=of),
            bisect_right(self._entries, beginning, key=of),
        )


class _Places:
    """Places in a list, as runs `[low, high)` that do not touch."""

    def __init__(self) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []

    def add(self, low: int, high: int) -> None:
        first = bisect_left(self._highs, low)
        last = bisect_right(self._lows, high)
        if first < last:
            low, high = min(low, self._lows[first]), max(high, self._highs[last - 1])
        self._lows[first:last] = [low]
        self._highs[first:last] = [high]

    def __contains__(self, place: int) -> bool:
        run = bisect_right(self._lows, place) - 1
        return run >= 0 and place < self._highs[run]

    def after(self, place: int) -> int:
        """The first place from `place` on that is not among these."""
        run = bisect_right(self._lows, place) - 1
        return self._highs[run] if run >= 0 and place < self._highs[run] else place

    def before(self, place: int) -> int:
        """The last place below `place` that is not among these; -1 if there is none."""
        run = bisect_right(self._lows, place - 1) - 1
        return self._lows[run] - 1 if run >= 0 and place - 1 < self._highs[run] else place - 1


def _key(candidate: Candidate) -> bytes:
    """Sorts by tenant, then so that those with the same first tokens stand together."""
    return candidate.salt.encode() + b"\xff" + candidate.prompt.tobytes()


def _shared(one: _Entry, other: _Entry) -> int:
    """Tokens in common at the beginning, as far as they count."""
    if one.candidate.salt != other.candidate.salt:
        return 0
    theirs, ours = one.candidate.prompt, other.candidate.prompt
    most = min(len(theirs), len(ours))
    differ = np.flatnonzero(theirs[:most] != ours[:most])
    shared = int(differ[0]) if len(differ) else most
    return shared if shared >= LEAST_SHARED else 0
