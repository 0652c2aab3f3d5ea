"""Those that share a prefix run together: longest prefix match, with bounded overtaking."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from ockham.core.registry import register
from ockham.core.seams import Candidate
from ockham.schedule.common import MOST_WAITS, latest, share_rows

MOST_OVERTAKEN = 64
"""Requests that may be admitted before the oldest one that waits, since it became the oldest. So a
request that finds n others waiting is admitted after at most (n + 1) * (MOST_OVERTAKEN + 1)."""
LEAST_SHARED = 16
"""Fewer tokens in common are not worth leaving the order of arrival for."""
MOST_LOOKED = 256
"""Requests that are looked at in the order of arrival in a step, for one that need not wait."""


Order = tuple[int, int]


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
    (arXiv:2312.07104), found in a sorted list at the cost of a binary search, whatever waits. Where
    nothing is shared it is the order of arrival. The oldest is overtaken 64 times at most; what was
    preempted goes first. Of an offline batch that is larger than the memory, no branch is begun
    while requests of the one before wait for its prefix.
    """

    name: ClassVar[str] = "lpm"

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._of: dict[Order, _Entry] = {}
        self._last: _Entry | None = None
        """Of the request that was admitted last."""
        self._oldest: Order | None = None
        self._overtaken = 0
        """Requests admitted before `_oldest` since it is the oldest."""

    def add(self, candidate: Candidate) -> None:
        entry = _Entry(_key(candidate), candidate.order, candidate)
        self._of[candidate.order] = entry
        insort(self._entries, entry)

    def remove(self, candidate: Candidate) -> None:
        del self._entries[self._place(self._of.pop(candidate.order))]

    def order(
        self, waiting: Collection[Candidate], waits: Callable[[Candidate], int]
    ) -> Iterator[Candidate]:
        done = _Places()  # what was admitted, or need not be looked at in this step
        queue = islice(iter(waiting), MOST_LOOKED)
        elder = next(queue, None)
        ages = iter(waiting)
        oldest = next(ages, None)
        admitted: set[Order] = set()
        found_waiting = least_common = 0
        while True:
            while oldest is not None and oldest.order in admitted:
                oldest = next(ages, None)
            if oldest is None:
                return
            if oldest.order != self._oldest:
                self._oldest, self._overtaken = oldest.order, 0
            while elder is not None and self._place(self._of[elder.order]) in done:
                elder = next(queue, None)
            overdue = self._overtaken >= MOST_OVERTAKEN
            chosen = oldest if overdue else self._next(elder, done)
            if chosen is None:
                return
            entry = self._of[chosen.order]
            common = 0 if self._last is None else _shared(self._last, entry)
            if chosen.orderly and common < least_common:
                return
            shared = waits(chosen)
            if shared:
                found_waiting += 1
                if overdue or found_waiting == MOST_WAITS:
                    return
                least_common = max(least_common, common // 2)
                done.add(*self._range(entry, shared))
                continue
            preempted = chosen.computed_once > 0
            yield chosen
            admitted.add(chosen.order)
            place = self._place(entry)
            done.add(place, place + 1)
            if not preempted:
                self._last = entry
            self._overtaken += chosen is not oldest

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        return share_rows(prefilling, budget)

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return latest(running)

    def _next(self, elder: Candidate | None, done: _Places) -> Candidate | None:
        """Of the oldest that is left and the two beside the last in sorted order, the one that has
        the most in common with the last; the oldest, if no other has more."""
        if self._last is None or (elder is not None and elder.computed_once):
            return elder
        best, most = elder, _shared(self._last, self._of[elder.order]) if elder is not None else 0
        at = self._place(self._last)
        for place in (done.after(at), done.before(at)):
            if 0 <= place < len(self._entries):
                entry = self._entries[place]
                shared = _shared(self._last, entry)
                if shared > most:
                    best, most = entry.candidate, shared
        return best

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
