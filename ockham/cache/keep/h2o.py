"""Keep the cells that all rows so far have looked at most, and the latest ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ockham.cache.keep import budgets
from ockham.cache.keep.budgets import Budget, BudgetAsk, BudgetKeeping, BudgetOptions
from ockham.core.arrays import Doubles, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import KeptText

MOST_EVERY = 1024


class H2OOptions(BudgetOptions):
    """A budget, of which the latest cells take the share `recent`. Every row's attention counts, or
    that of one row in `every`. With `normalised`, the sum of what a cell was given is divided by
    the number of rows that could see it: the plain sum favours early tokens, which more rows meet.
    """

    recent: float = 0.5
    every: int = 1
    normalised: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.recent, self.every):
            raise ConfigError(wrong[1])


class H2OAsk(BudgetAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    recent: float | None = None
    every: int | None = None
    normalised: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.recent, self.every):
            raise InvalidRequest(wrong[1], wrong[0])


def _wrong(recent: float | None, every: int | None) -> tuple[str, str] | None:
    """Which of the settings is wrong, and how, in a sentence."""
    if recent is not None and not 0.0 < recent < 1.0:
        return (
            "recent",
            f"recent must be a share of the budget above 0 and below 1, got {recent:g}.",
        )
    if every is not None and not 1 <= every <= MOST_EVERY:
        return "every", f"every must be from 1 to {MOST_EVERY}, got {every}."
    return None


@register("keep", "h2o", exact=False, books=("h2o",), paper="367")
class H2O:
    """The latest cells stay, and those that the attention of all rows so far adds up on.

    A few tokens, the heavy hitters, get most of the attention of a text (H2O, Zhang et al. 2023,
    arXiv:2306.14048). The sum runs over the prompt and over what is written; a cell that was
    dropped is gone. Probabilities of every row cost another pass over its keys, which `every`
    thins out. Approximate; state is private to the request. Measured by `ockham techniques measure
    h2o`.
    """

    name: ClassVar[str] = "h2o"
    trial: ClassVar[dict[str, object]] = {"budget": 12, "sinks": 2, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[H2OOptions]] = H2OOptions
    Ask: ClassVar[type[H2OAsk]] = H2OAsk

    def __init__(self, options: H2OOptions) -> None:
        self._options = options

    def open(self, ask: H2OAsk, text: KeptText) -> HeavyHitters:
        """See `Keep`."""
        given = budgets.settings(self._options, ask)
        budget = Budget.of(given, ask, text, given["recent"])
        return HeavyHitters(self.name, budget, text, given["every"], given["normalised"])


class HeavyHitters(BudgetKeeping):
    """The cells of one sequence that its rows have looked at most."""

    def __init__(
        self, name: str, budget: Budget, text: KeptText, every: int, normalised: bool
    ) -> None:
        super().__init__(name, budget, text)
        self._every, self._normalised = every, normalised

    def rows(self, places: Ints, border: int) -> Sequence[Ints]:
        return [np.flatnonzero(places % self._every == 0).astype(np.int32)]

    def worth(self, group: int, places: Ints, tokens: int) -> Doubles:
        sums = self.total(group, 0, places.shape[-1])
        if not self._normalised:
            return sums
        # Of the rows 0, every, 2 * every, ... those from a cell's own place on see it.
        seen = -(-tokens // self._every) - -(-places // self._every)
        return sums / np.maximum(seen, 1)

    def carry(self, group: int, kept: Ints) -> None:
        cells = int(kept.max()) + 1
        self.totals[group] = [
            np.take_along_axis(self._totals_of(group, number, cells), kept, axis=-1)
            for number in range(len(self.totals.get(group, ())))
        ]
