"""As many samples as the first few say that a problem is hard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.price import Work
from ockham.core.registry import register
from ockham.core.seams import Branch, Problem
from ockham.search.structures.samples import (
    MOST_SAMPLES,
    SampleOptions,
    Samples,
    SamplesAsk,
    settled,
    votes_told,
)
from ockham.search.structures.tally import Tally


class AllocateOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `table` has an entry for each of the first samples. If k of those give the most frequent answer,
    entry k (the first, if none gives one) says how many samples are drawn in all. `samples` is none
    of its settings: the table's largest entry stands for it. `extract` says what of a text is its
    answer, `parallel` how many are drawn at once, `budget` the most tokens of all.
    """

    table: list[int] = msgspec.field(default_factory=lambda: [16, 16, 8, 4])

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return super().wrong() or _wrong(self.table)

    def works(self, prompt: int, tokens: int) -> list[Work]:
        """See `SearchOptions`."""
        samples = max(self.table)
        return SampleOptions(samples=samples, parallel=self.parallel).works(prompt, tokens)


class AllocateAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `AllocateOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "allocate"

    table: list[int] | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        said = super().wrong() or _wrong(self.table)
        if said is None and self.samples is not None:
            return "the table says how many samples are drawn; leave out samples."
        return said


def _wrong(table: list[int] | None) -> str | None:
    if table is None:
        return None
    first = len(table)
    if not 2 <= first <= MOST_SAMPLES:
        return f"table must have 2 to {MOST_SAMPLES} entries, got {first}."
    if not all(first <= entry <= MOST_SAMPLES for entry in table):
        return (
            f"each entry of table must lie in [{first}, {MOST_SAMPLES}], for the first {first} are "
            f"always drawn, got {table}."
        )
    return None


@register("search", "allocate", exact=False, books=("allocate",), paper="70")
class Allocate:
    """A vote over as many samples as the problem needs, which the first few tell.

    Compute-optimal test-time scaling (Snell et al. 2024, arXiv:2408.03314, paper 70) gives a
    problem a budget by its difficulty. Here that is how many of the first samples agree, and the
    budget of each stands in a table, which `ockham techniques budget` learns for a model and a
    task. Beyond a problem's saturation (TTSPM, paper 308) more samples bring nothing. Samples count
    in their order, so the same seed gives the same answer, whatever ran beside it. `ockham
    techniques measure search/allocate` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "allocate"
    Options: ClassVar[type[AllocateOptions]] = AllocateOptions
    Ask: ClassVar[type[AllocateAsk]] = AllocateAsk

    def __init__(self, options: AllocateOptions) -> None:
        self._options = options

    def begin(self, ask: AllocateAsk, problem: Problem) -> Allocated | None:
        """See `Search`."""
        options = msgspec.structs.replace(self._options, samples=max(self._options.table))
        if ask.table is not None:
            options = msgspec.structs.replace(options, samples=max(ask.table))
        settings = settled(options, ask, problem)
        return None if settings is None else Allocated(settings, problem)


class Allocated(Samples):
    """The samples of one request so far. They count in their order."""

    settings: AllocateOptions

    def __init__(self, settings: AllocateOptions, problem: Problem) -> None:
        super().__init__(settings, problem)
        self._tally = Tally(settings.samples)
        self._counted = 0
        self._agreed: int | None = None
        """How many of the first samples gave the most frequent answer."""

    @property
    def begins(self) -> int:
        """See `SearchState`."""
        return min(self.settings.parallel, len(self.settings.table))

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return min(self.settings.parallel, self.settings.samples)

    def may_begin(self) -> int:
        """See `Samples`."""
        table = self.settings.table
        return len(table) if self._agreed is None else table[max(0, self._agreed - 1)]

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        while self._counted < self.may_begin() and self._counted in self.answers:
            self._tally.add(self.answers[self._counted])
            self._counted += 1
            if self._counted == len(self.settings.table):
                self._agreed = max(self._tally.counts.values(), default=0)
        return "table" if self._agreed is not None and self._counted == self.may_begin() else None

    def ranked(self) -> list[int]:
        """See `Samples`."""
        return self._tally.samples(self.answers)

    def counted(self) -> list[int]:
        """See `Samples`."""
        return list(range(self._counted))

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        told = votes_told(dict(self._tally.counts.most_common()), self._tally.empty)
        return {**told, "agreed": self._agreed}
