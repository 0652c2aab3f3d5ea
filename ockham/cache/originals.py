"""State kept as it was first computed, where it stands, for prompts that take it over elsewhere.

An original holds the pages that its cells stand in, beside whoever else reads them. Nothing is
known here of tokens: what it is the state of is the business of the technique that keeps it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ockham.core.arrays import Ints, Longs
from ockham.core.seams import Given, PagePool


class Original:
    """The state of `len(positions)` cells: cell i stands in slot `slots[g][i]` of each layer group,
    its keys rotated to `positions[i]`. `cost` is that of computing it, in rows."""

    __slots__ = ("cost", "locks", "pages", "positions", "priority", "slots", "uses")

    def __init__(self, positions: Ints, slots: list[Longs], pages: list[Ints], cost: float) -> None:
        self.positions = positions
        self.slots = slots
        self.pages = pages
        """Of each group, the pages that `slots` are in, each once."""
        self.cost = cost
        self.uses = 0
        self.locks = 0
        self.priority = 0.0

    def given(self, cells: Ints, of: Ints) -> Given:
        """Its cells `of`, to stand in `cells`."""
        return Given(cells, [slots[of] for slots in self.slots], cells - self.positions[of])


class Recording:
    """An original in the making: cells [start, stop) of a sequence, held as they become valid."""

    def __init__(self, pool: PagePool, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.done = start
        """Cells before this one are held."""
        self.failed = False
        """Whether a window had let go of a cell before it could be held."""
        self._pool = pool
        groups, count = len(pool.windows), stop - start
        self._positions = np.arange(start, stop, dtype=np.int32)
        self._slots = [np.empty(count, np.int64) for _ in range(groups)]
        self._pages: list[set[int]] = [set() for _ in range(groups)]

    @property
    def complete(self) -> bool:
        return self.done == self.stop and not self.failed

    def reached(self, cells: int, tables: Sequence[Ints], given: Given | None = None) -> None:
        """The cells [0, cells) are valid and stand in `tables`; those that were `given` are
        recorded where they were taken from."""
        stop = min(cells, self.stop)
        if self.failed or stop <= self.done:
            return
        tokens = self._pool.page_tokens
        own = np.arange(self.done, stop)
        places = slice(self.done - self.start, stop - self.start)
        for group, table in enumerate(tables):
            slots = table[own // tokens].astype(np.int64) * tokens + own % tokens
            if given is not None and len(given.cells):
                slots[given.cells - self.done] = given.slots[group]
            self._slots[group][places] = slots
        if given is not None and len(given.cells):
            self._positions[given.cells - self.start] = given.cells - given.shifts
        new = []
        for group, slots in enumerate(self._slots):
            pages = np.unique(slots[places] // tokens).tolist()
            self.failed |= pages[0] < 0
            new.append([page for page in pages if page not in self._pages[group]])
        self.done = stop
        if self.failed:
            self.drop()
            return
        for held, more in zip(self._pages, new, strict=True):
            held.update(more)
        self._pool.hold([np.array(more, np.int32) for more in new])

    def finish(self, cost: float) -> Original:
        """The original of the cells so far, which holds the pages from now on."""
        pages = [np.array(sorted(held), np.int32) for held in self._pages]
        self._pages = [set() for _ in self._pages]
        count = self.done - self.start
        slots = [slots[:count] for slots in self._slots]
        return Original(self._positions[:count], slots, pages, cost)

    def drop(self) -> None:
        """Hold nothing any more."""
        self._pool.drop([np.array(sorted(held), np.int32) for held in self._pages])
        self._pages = [set() for _ in self._pages]

    def held(self) -> list[Ints]:
        return [np.array(sorted(held), np.int32) for held in self._pages]


class Originals:
    """The originals of one technique, in at most `share` of each group's pages.

    Evicts the original with the lowest cost x (1 + uses) / pages first (GreedyDual-Size with
    Frequency: Cherkasova 1998), which is Cache-Craft's value of a chunk. Locked ones stay.
    """

    def __init__(self, pool: PagePool, share: float, on_evicted: Callable[[object], None]) -> None:
        """`on_evicted` is told the name of each original that goes."""
        self.pool = pool
        self._on_evicted = on_evicted
        self._most = [max(1, int(share * size)) for size in pool.sizes]
        self._live: dict[Original, object] = {}
        self.recordings: set[Recording] = set()
        self._taken = [0] * len(pool.sizes)
        self._heap: list[tuple[float, int, Original]] = []
        self._numbers = itertools.count()
        self._clock = 0.0
        earlier = pool.reclaim

        def reclaim(need: list[int]) -> None:
            if earlier is not None:
                earlier(need)
            while self._short(need) and self._evict():
                pass

        pool.reclaim = reclaim

    def __iter__(self) -> Iterator[Original]:
        return iter(self._live)

    def record(self, start: int, stop: int) -> Recording:
        """Begin to hold the cells [start, stop) of a sequence."""
        recording = Recording(self.pool, start, stop)
        self.recordings.add(recording)
        return recording

    def cancel(self, recording: Recording) -> None:
        """Give up a recording that was not kept."""
        recording.drop()
        self.recordings.discard(recording)

    def keep(self, recording: Recording, name: object, cost: float) -> Original | None:
        """Keep what was recorded under a name. None if it takes more than the share of the pool
        by itself."""
        self.recordings.discard(recording)
        original = recording.finish(cost)
        if any(len(p) > most for p, most in zip(original.pages, self._most, strict=True)):
            self.pool.drop(original.pages)
            return None
        self._live[original] = name
        for group, pages in enumerate(original.pages):
            self._taken[group] += len(pages)
        original.locks += 1  # not this one
        while any(t > most for t, most in zip(self._taken, self._most, strict=True)):
            if not self._evict():
                break
        original.locks -= 1
        self._rate(original)
        return original

    def lock(self, original: Original) -> None:
        """Somebody reads it: it is worth more, and stays until `unlock`."""
        original.uses += 1
        original.locks += 1
        self._rate(original)

    def unlock(self, original: Original) -> None:
        original.locks -= 1
        self._rate(original)

    def remove(self, original: Original) -> None:
        """Forget an original that nobody reads."""
        name = self._live.pop(original)
        for group, pages in enumerate(original.pages):
            self._taken[group] -= len(pages)
        self.pool.drop(original.pages)
        self._on_evicted(name)

    def evictable(self) -> list[int]:
        """Pages of each group that only unlocked originals hold."""
        free = [original for original in self._live if not original.locks]
        counts = []
        for group in range(len(self.pool.sizes)):
            held = _concatenate(original.pages[group] for original in free)
            pages, times = np.unique(held, return_counts=True)
            counts.append(int((self.pool.holders(group, pages) == times).sum()))
        return counts

    def forget(self) -> None:
        """Remove all that nobody reads."""
        while self._evict():
            pass

    def held(self) -> list[Ints]:
        """Of each group, every page as often as it is held."""
        holders = [original.pages for original in self._live]
        holders += [recording.held() for recording in self.recordings]
        groups = range(len(self.pool.sizes))
        return [_concatenate(pages[group] for pages in holders) for group in groups]

    def _rate(self, original: Original) -> None:
        pages = sum(len(pages) for pages in original.pages)
        original.priority = self._clock + original.cost * (1 + original.uses) / pages
        heapq.heappush(self._heap, (original.priority, next(self._numbers), original))
        if len(self._heap) > 64 + 4 * len(self._live):  # mostly entries that hold no longer
            live = [(o.priority, next(self._numbers), o) for o in self._live if not o.locks]
            heapq.heapify(live)
            self._heap = live

    def _evict(self) -> bool:
        while self._heap:
            priority, _, original = heapq.heappop(self._heap)
            if original in self._live and not original.locks and priority == original.priority:
                self._clock = priority
                self.remove(original)
                return True
        return False

    def _short(self, need: list[int]) -> bool:
        return any(have < n for have, n in zip(self.pool.free_pages(), need, strict=True))


def joined(pieces: Sequence[Given]) -> Given:
    """All pieces, one after the other."""
    if not pieces:
        return Given(np.empty(0, np.int32), [], np.empty(0, np.int32))
    return Given(
        np.concatenate([piece.cells for piece in pieces]),
        [np.concatenate(slots) for slots in zip(*(p.slots for p in pieces), strict=True)],
        np.concatenate([piece.shifts for piece in pieces]),
    )


def _concatenate(pages: Iterable[Ints]) -> Ints:
    listed = list(pages)
    return np.concatenate(listed) if listed else np.empty(0, np.int32)
