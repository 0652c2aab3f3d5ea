"""Keep the cells that rows look at most, more of them in layers that look at many, and merge what
is dropped into what stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ockham.cache.keep import budgets
from ockham.cache.keep.budgets import Budget, BudgetAsk, BudgetKeeping, BudgetOptions
from ockham.cache.keep.gaps import with_gaps
from ockham.cache.keep.merging import Merge, Pairs, directions, nearest
from ockham.core.arrays import Bools, Doubles, Ints, Longs
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import HeldCells, Keeping, Kept, KeptText, Merges
from ockham.core.visits import BLOCK_KEYS


class D2OOptions(BudgetOptions):
    """A budget of each head, of which the latest cells take the share `recent`. With `layered`, it
    is that of a layer on average: layers differ by whole blocks of 64 cells.

    `merge` says what of a dropped cell goes on in the cell that stays whose key is most like its
    own: its `values`, `both` its key and its values, or `none`. `memory` is how much of the
    threshold of similarity is that of earlier borders.
    """

    recent: float = 0.5
    layered: bool = False
    merge: Merge = "values"
    memory: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.recent, self.memory):
            raise ConfigError(wrong[1])


class D2OAsk(BudgetAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    recent: float | None = None
    layered: bool | None = None
    merge: Merge | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.recent, self.memory):
            raise InvalidRequest(wrong[1], wrong[0])


def _wrong(recent: float | None, memory: float | None) -> tuple[str, str] | None:
    """Which of the settings is wrong, and how, in a sentence."""
    if recent is not None and not 0.0 < recent < 1.0:
        return (
            "recent",
            f"recent must be a share of the budget above 0 and below 1, got {recent:g}.",
        )
    if memory is not None and not 0.0 <= memory < 1.0:
        return "memory", f"memory must be from 0 to below 1, got {memory:g}."
    return None


@register("keep", "d2o", exact=False, books=("d2o",), paper="173")
class D2O:
    """The cells stay that all rows so far have looked at most, and what is dropped is merged into
    what it is most like.

    A dropped cell goes on in the nearest cell that stays if it is like enough; with `layered`, a
    layer whose attention is spread evenly over the text keeps more cells than one that looks at few
    (D2O, Wan et al. 2024, arXiv:2406.13035). All layers take the memory of the one that keeps most
    then; the others save the time of reading. Approximate; state is private to the request.
    Measured by `ockham techniques measure d2o`.
    """

    name: ClassVar[str] = "d2o"
    trial: ClassVar[dict[str, object]] = {"budget": 12, "sinks": 2, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[D2OOptions]] = D2OOptions
    Ask: ClassVar[type[D2OAsk]] = D2OAsk

    def __init__(self, options: D2OOptions) -> None:
        self._options = options

    def open(self, ask: D2OAsk, text: KeptText) -> Discriminated:
        """See `Keep`."""
        given = budgets.settings(self._options, ask)
        budget = Budget.of(given, ask, text, given["recent"])
        return Discriminated(self.name, budget, text, given)


class Discriminated(BudgetKeeping):
    """The cells of one sequence that its rows have looked at most, with what went on in them."""

    def __init__(self, name: str, budget: Budget, text: KeptText, given: Mapping[str, Any]) -> None:
        super().__init__(name, budget, text)
        self._layered: bool = given["layered"]
        self._merge: Merge = given["merge"]
        self._memory: float = given["memory"]
        self._thresholds: dict[int, Doubles] = {}
        """Of each group: (layers, kv_heads), the similarity from which cells are merged."""
        self._next: dict[int, Doubles] = {}
        """Those of the border that was asked about last."""

    def rows(self, places: Ints, border: int) -> Sequence[Ints]:
        return [np.arange(len(places), dtype=np.int32)]

    def worth(self, group: int, places: Ints, tokens: int) -> Doubles:
        # The rows from a cell's own place on see it.
        found: Doubles = self.total(group, 0, places.shape[-1]) / np.maximum(tokens - places, 1)
        return found

    def carry(self, group: int, kept: Ints) -> None:
        cells = int(kept.max()) + 1
        totals = np.take_along_axis(
            self.total(group, 0, cells), np.maximum(kept, 0).astype(np.int64), axis=-1
        )
        self.totals[group] = [np.where(kept < 0, 0.0, totals)]

    def most_cells(self, tokens: int) -> int:
        """That of the layer which keeps most."""
        if not self._layered:
            return self.budget.most_cells(tokens)
        layers = len(self._layers)
        most = self.budget.cells * layers / (1.0 + (layers - 1) / math.e)
        more = math.ceil((most - self.budget.cells) / BLOCK_KEYS) * BLOCK_KEYS
        return min(tokens, self.budget.most_cells(tokens) + more)

    def reduce(self, group: int, places: Ints, held: HeldCells) -> Kept | None:
        """See `Keeping`."""
        own = self._text.groups[group]
        shape = (len(own.layers), own.kv_heads, places.shape[-1])
        wide = np.broadcast_to(places, shape)
        if places.shape[-1] <= self.budget.cells:
            return None
        best, counts = self.ranked(group, wide)
        if self._layered:
            counts += self._more(group, wide, counts)[:, None]
        stays = [
            [np.sort(of_head[:count]) for of_head, count in zip(*of_layer, strict=True)]
            for of_layer in zip(best, counts.tolist(), strict=True)
        ]
        cells = with_gaps(stays)
        if self._merge == "none":
            return Kept(cells)
        return Kept(cells, self._merges(group, wide, stays, cells.shape[-1], held))

    def _more(self, group: int, places: Ints, counts: Ints) -> Ints:
        """How many cells each layer keeps more (layers,) than `counts` (layers, kv_heads), of those
        whose tokens stand in `places` (layers, kv_heads, n)."""
        budget, cells = self.budget, places.shape[-1]
        even = budget.cells * layer_shares(self.total(group, 0, cells), places >= 0)
        least = -((counts.min(axis=1) - budget.sinks - budget.window - 1) // BLOCK_KEYS)
        held = (places >= 0).sum(axis=-1)
        most = ((held - counts) // BLOCK_KEYS).min(axis=1)
        steps = np.clip(whole_steps((even - budget.cells) / BLOCK_KEYS), least, most)
        more: Ints = (BLOCK_KEYS * steps).astype(np.int32)
        return more

    def _merges(
        self,
        group: int,
        places: Ints,
        stays: Sequence[Sequence[Ints]],
        cells: int,
        held: HeldCells,
    ) -> Merges | None:
        """What goes on in the `cells` cells that stay, of which each head has those in `stays`, and
        gaps before them."""
        pairs = Pairs()
        known = self._thresholds.get(group)
        thresholds = np.zeros(places.shape[:2])
        every, _ = held.read(0, places.shape[-1])
        for index, of_layer in enumerate(stays):
            keys = directions(every[index])
            for head, own in enumerate(of_layer):
                # Nothing goes on in the first cells: whatever they hold, all rows look at them.
                into = own[places[index, head, own] >= self.budget.sinks]
                gone = np.setdiff1d(np.flatnonzero(places[index, head] >= 0), own)
                if not len(gone):  # a head of few cells keeps all: its threshold stays
                    thresholds[index, head] = 0.0 if known is None else known[index, head]
                    continue
                match, cosines = nearest(keys[head, gone], keys[head, into])
                threshold = cosines.mean(dtype=np.float64)
                if known is not None:
                    threshold *= 1.0 - self._memory
                    threshold += self._memory * known[index, head]
                thresholds[index, head] = threshold
                alike = (cosines >= threshold) & (cosines > 0)
                numbers = cells - len(into) + match[alike]
                pairs.add(index, head, gone[alike], numbers, cosines[alike])
        self._next = {**self._next, group: thresholds}
        return pairs.merges(self._merge)

    def dropped(self, kept: Mapping[int, Ints], tokens: int) -> None:
        """See `Keeping`."""
        super().dropped(kept, tokens)
        self._thresholds = {**self._thresholds, **self._next}

    def fresh(self) -> Keeping:
        """See `Keeping`."""
        twin = super().fresh()
        assert isinstance(twin, Discriminated), "it is made from this one"
        twin._thresholds, twin._next = {}, {}
        return twin


def layer_shares(totals: Doubles, held: Bools) -> Doubles:
    """How much of a budget each layer gets, 1 on average: (layers,), from the attention that each
    cell was given, (layers, kv_heads, cells), of those that are held.

    A layer's density is the variance of that over the cells, on average over the heads. It is
    scaled to 0 to 1 over all layers, and the shares are those of a softmax of its negative (D2O,
    arXiv:2406.13035). The authors' code scales each layer by the range of its own heads, which
    leaves nothing of the level of a layer beside the others.
    """
    counts = held.sum(axis=-1)
    means = np.where(held, totals, 0.0).sum(axis=-1) / counts
    squares = np.where(held, (totals - means[..., None]) ** 2, 0.0).sum(axis=-1) / counts
    density = squares.mean(axis=1)
    extent = density.max() - density.min()
    scaled = (density - density.min()) / extent if extent > 0 else np.zeros(len(density))
    shares = np.exp(-scaled)
    found: Doubles = shares * len(shares) / shares.sum()
    return found


def whole_steps(steps: Doubles) -> Longs:
    """Whole numbers near `steps` (n,), whose sum is 0, with the same sum: those that lie the most
    above their floor are raised."""
    whole = np.floor(steps).astype(np.int64)
    raised = np.argsort(-(steps - whole), kind="stable")[: -int(whole.sum())]
    whole[raised] += 1
    return whole
