"""Keep the cells that all rows or the latest ones look at, and merge those that say the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ockham.cache.keep import budgets
from ockham.cache.keep.budgets import Budget, BudgetAsk, BudgetKeeping, BudgetOptions
from ockham.cache.keep.gaps import with_gaps
from ockham.cache.keep.merging import AT_ONCE, Merge, Pairs, directions, nearest
from ockham.cache.keep.pooling import pooled, wrong_kernel
from ockham.core.arrays import Bools, Doubles, Floats, Ints, Longs
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import HeldCells, Kept, KeptText


class EMSOptions(BudgetOptions):
    """A budget, and what decides: the attention of the latest `window` rows before cells are
    dropped, and that of all rows, each as the mean over `kernel` neighbouring cells.

    `pool` times as many cells as the budget are looked at, and the others are dropped. Of those a
    cell whose key has at least the cosine `alike` with that of a better one leaves its place to the
    next. Its values go on in that better cell if `merge` is `values`, its key too if it is `both`,
    and nothing of it if it is `none`.
    """

    window: int = 32
    kernel: int = 5
    pool: float = 4.0
    alike: float = 0.75
    merge: Merge = "values"

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.pool, self.alike, self.kernel):
            raise ConfigError(wrong[1])


class EMSAsk(BudgetAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    window: int | None = None
    kernel: int | None = None
    pool: float | None = None
    alike: float | None = None
    merge: Merge | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.pool, self.alike, self.kernel):
            raise InvalidRequest(wrong[1], wrong[0])


MOST_POOL = 64.0
TINY = 1e-30
"""What a cell that is worth nothing counts as where worths are compared."""


def _wrong(pool: float | None, alike: float | None, kernel: int | None) -> tuple[str, str] | None:
    """Which of the settings is wrong, and how, in a sentence."""
    if pool is not None and not 1.0 <= pool <= MOST_POOL:
        return "pool", f"pool must be from 1 to {MOST_POOL:g} times the budget, got {pool:g}."
    if alike is not None and not 0.0 <= alike <= 1.0:
        return "alike", f"alike must be a cosine from 0 to 1, got {alike:g}."
    if kernel is not None and (wrong := wrong_kernel(kernel)):
        return "kernel", wrong
    return None


@register("keep", "ems", exact=False, books=("ems",), paper="258")
class EMS:
    """The cells stay that the end of a text or all of it looks at, each head's own, and those of
    them that say the same become one.

    Sums over all rows favour some places by their position, those over the latest rows what is
    asked last; each is scaled by its largest, and their sum counts (EMS, Li et al. 2024,
    arXiv:2412.08521, whose exact combination is not public). What is like no cell that stays is
    dropped: their zero class. Heads keep different numbers of cells only as `floor` says.
    Approximate; state is private to the request. Measured by `ockham techniques measure ems`.
    """

    name: ClassVar[str] = "ems"
    trial: ClassVar[dict[str, object]] = {"budget": 12, "sinks": 2, "window": 4, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[EMSOptions]] = EMSOptions
    Ask: ClassVar[type[EMSAsk]] = EMSAsk

    def __init__(self, options: EMSOptions) -> None:
        self._options = options

    def open(self, ask: EMSAsk, text: KeptText) -> EvictedThenMerged:
        """See `Keep`."""
        given = budgets.settings(self._options, ask)
        budget = Budget.of(given, ask, text, given["window"])
        return EvictedThenMerged(self.name, budget, text, given)


class EvictedThenMerged(BudgetKeeping):
    """The cells of one sequence that are looked at, without those that say the same as a better
    one."""

    def __init__(self, name: str, budget: Budget, text: KeptText, given: Mapping[str, Any]) -> None:
        super().__init__(name, budget, text)
        self._pool: float = given["pool"]
        self._alike: float = given["alike"]
        self._merge: Merge = given["merge"]
        self._kernel: int = given["kernel"]

    def rows(self, places: Ints, border: int) -> Sequence[Ints]:
        every = np.arange(len(places), dtype=np.int32)
        return [every, np.flatnonzero(places >= border - self.budget.window).astype(np.int32)]

    def worth(self, group: int, places: Ints, tokens: int) -> Doubles:
        budget, cells = self.budget, places.shape[-1]
        open_ = (places >= budget.sinks) & (places < tokens - budget.window)

        def scaled(values: Doubles) -> Doubles:
            """By the largest of the cells that do not stay in any case."""
            most = np.where(open_, values, 0.0).max(axis=-1, keepdims=True)
            found: Doubles = np.divide(values, most, out=np.zeros_like(values), where=most > 0)
            return found

        # The rows from a cell's own place on see it.
        everywhere = self.total(group, 0, cells) / np.maximum(tokens - places, 1)
        latest = self.total(group, 1, cells)
        first, second = (
            scaled(pooled(values, self._kernel, "mean")) for values in (everywhere, latest)
        )
        summed: Doubles = first + second
        return summed

    def carry(self, group: int, kept: Ints) -> None:
        cells = int(kept.max()) + 1
        totals = np.take_along_axis(self.total(group, 0, cells), np.maximum(kept, 0), axis=-1)
        self.totals[group] = [np.where(kept < 0, 0.0, totals)]

    def reduce(self, group: int, places: Ints, held: HeldCells) -> Kept | None:
        """See `Keeping`."""
        budget = self.budget
        if places.shape[-1] <= budget.cells:
            return None
        tokens = int(places[..., -1].max()) + 1
        best, counts = self.ranked(group, places)
        worth = self.worth(group, places, tokens)
        wide = np.broadcast_to(places, worth.shape)
        every, _ = held.read(0, places.shape[-1])
        stays: list[list[Ints]] = []
        pairs = Pairs()
        for layer, of_layer in enumerate(counts.tolist()):
            keys = directions(every[layer])
            stays.append([])
            for head, count in enumerate(of_layer):
                order = best[layer, head, : math.ceil(self._pool * count)]
                order = order[wide[layer, head, order] >= 0]
                place = wide[layer, head, order]
                first = place < budget.sinks
                always = first | (place >= tokens - budget.window)
                into = centres(keys[head, order], always, first, self._alike)
                own = np.flatnonzero(into < 0)[:count]
                if len(own) < count:  # too few differ: the best of the others stay too
                    more = np.flatnonzero(into >= 0)[: count - len(own)]
                    own = np.concatenate((own, more))
                    into[more] = -1
                cells = np.sort(order[own])
                stays[layer].append(cells)
                gone = np.flatnonzero((into >= 0) & np.isin(into, own))
                centre = order[into[gone]]
                value = worth[layer, head]
                share = np.minimum(value[order[gone]] / np.maximum(value[centre], TINY), 1.0)
                numbers = np.searchsorted(cells, centre) + counts.max() - count
                pairs.add(layer, head, order[gone], numbers, share)
        return Kept(with_gaps(stays), pairs.merges(self._merge))


def centres(keys: Floats, always: Bools, barred: Bools, alike: float) -> Longs:
    """Into which other of these cells each goes, or -1 if it is a centre: the number of the
    earlier centre whose key is the most like its own, if its cosine is at least `alike`.

    `keys` (n, width) are directions, the best cell first. Cells of `always` (n,) are centres, and
    nothing goes into those of `barred` (n,).
    """
    into = np.full(len(keys), -1, np.int64)
    open_: Longs = np.empty(0, np.int64)
    for start in range(0, len(keys), AT_ONCE):
        block = np.arange(start, min(start + AT_ONCE, len(keys)))
        match, cosines = np.full(len(block), -1), np.full(len(block), -np.inf, np.float32)
        if len(open_):
            match, cosines = nearest(keys[block], keys[open_])
            match = open_[match]
        within = keys[block] @ keys[block].T
        for number, cell in enumerate(block.tolist()):
            if cosines[number] >= alike and not always[cell]:
                into[cell] = match[number]
            elif not barred[cell]:
                nearer = within[number] > cosines
                nearer[: number + 1] = False
                match[nearer], cosines[nearer] = cell, within[number][nearer]
        own = block[into[block] < 0]
        open_ = np.concatenate((open_, own[~barred[own]]))
    return into
