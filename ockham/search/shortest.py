"""The majority of the shortest samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ockham.core.errors import InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Branch, Problem
from ockham.search.structures.samples import (
    SampleOptions,
    Samples,
    SamplesAsk,
    settled,
    votes_told,
    wrong_samples,
)
from ockham.search.structures.tally import Tally


class ShortestOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `samples` are begun, all at once unless `parallel` says less. The `first` of them that are
    complete vote, and the others are given up. `extract` says what of a text is its answer,
    `budget` is the most tokens of all samples.
    """

    samples: int = 5
    parallel: int = 5
    first: int = 3

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return wrong_samples(self) or _wrong(self.first)


class ShortestAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `ShortestOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "shortest"

    first: int | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return wrong_samples(self) or _wrong(self.first)

    def sequences(self, choices: int) -> int:
        return self.parallel or ShortestOptions().parallel


def _wrong(first: int | None) -> str | None:
    return f"first must be at least 1, got {first}." if first is not None and first < 1 else None


@register("search", "shortest", exact=False, books=("shortest",))
class Shortest:
    """The majority of the samples that are complete first, which gives up those that think longer.

    short-m@k (Hassid et al. 2025, arXiv:2505.17813): of a reasoning model's `k` answers to one
    question the shortest are right more often, so the first `m` vote, and a tie goes to the
    shorter. Here the length in tokens says which are first, and not the clock: the same seed gives
    the same answer, whatever ran beside it. Of a model whose answers are as long whether right or
    wrong it saves tokens as fewer samples would. `ockham techniques measure search/shortest`
    measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "shortest"
    Options: ClassVar[type[ShortestOptions]] = ShortestOptions
    Ask: ClassVar[type[ShortestAsk]] = ShortestAsk

    def __init__(self, options: ShortestOptions) -> None:
        self._options = options

    def begin(self, ask: ShortestAsk, problem: Problem) -> ShortestSamples | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        if settings.first > settings.samples:
            raise InvalidRequest(
                f"shortest: the first {settings.first} of {settings.samples} samples are wanted; "
                "lower first, or raise samples."
            )
        return ShortestSamples(settings, problem)


class ShortestSamples(Samples):
    """The samples of one request so far, of which the shortest vote."""

    settings: ShortestOptions

    def __init__(self, settings: ShortestOptions, problem: Problem) -> None:
        super().__init__(settings, problem)
        self._tally = Tally(settings.first)
        self._best: list[int] = []

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`. Samples that have not begun may still be among the shortest."""
        complete = self._complete()
        if len(complete) < self.settings.first or self.begun < self.settings.samples:
            return None
        if any(n not in self.answers and n not in self.stopped for n in branches):
            return None
        self._best = complete[: self.settings.first]
        for number in self._best:
            self._tally.add(self.answers[number])
        return "first"

    def stops(self, branches: Mapping[int, Branch]) -> Iterable[int]:
        """See `Samples`: those that are as long as the last of the first already."""
        complete = self._complete()
        if len(complete) < self.settings.first:
            return []
        last = complete[self.settings.first - 1]
        bound = self.lengths[last], last
        running = (n for n, branch in branches.items() if branch.finish_reason is None)
        return [n for n in running if (branches[n].length + 1, n) > bound]

    def ranked(self) -> list[int]:
        """See `Samples`. Of answers that are given as often the shorter one wins."""
        tally, best = self._tally, self._best or self._complete()
        order = sorted(
            {answer for n in best if (answer := self.answers[n]) is not None},
            key=lambda answer: (
                -tally.counts[answer],
                min((self.lengths[n], n) for n in best if self.answers[n] == answer),
            ),
        )
        first = [next(n for n in best if self.answers[n] == answer) for answer in order]
        return [*first, *(n for n in best if n not in first)]

    def counted(self) -> list[int]:
        """See `Samples`."""
        return self._best or self._complete()

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        return votes_told(
            {
                str(self.answers[n]): self._tally.counts[str(self.answers[n])]
                for n in self.ranked()
                if self.answers[n] is not None
            },
            self._tally.empty,
        )

    def _complete(self) -> list[int]:
        """The samples that ended by themselves, the shortest first."""
        ended = (n for n in self.answers if n not in self.stopped)
        return sorted(ended, key=lambda n: (self.lengths[n], n))
