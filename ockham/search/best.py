"""The best of several samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from ockham.core.registry import register
from ockham.core.seams import Branch, Observer, Problem
from ockham.search.structures.samples import SampleOptions, Samples, SamplesAsk, settled
from ockham.search.structures.scorers import (
    CHECKER,
    LIKELIHOOD,
    Scorer,
    Scores,
    check_scorer,
    scorer_of,
)


class BestOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `scorer` says how good a sample is: "likelihood" (the geometric mean of its tokens'
    probabilities), "confidence", "checker:NAME", a program that the engine knows by `checkers`,
    "reward:NAME", one of its `rewards`, or "probe:NAME", one of its `probes`.
    No more are drawn once a score is at least `enough`; 1 where a checker scores, else none is.
    `samples` is the most that are drawn, `parallel` how many at once, `budget` the most tokens of
    all. `extract` says what of a text the report tells.
    """

    samples: int = 8
    scorer: str = LIKELIHOOD
    enough: float | None = None

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return super().wrong() or _wrong(self.scorer, self.enough)


class BestAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `BestOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "best"

    scorer: str | None = None
    enough: float | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return super().wrong() or _wrong(self.scorer, self.enough)


def _wrong(scorer: str | None, enough: float | None) -> str | None:
    if enough is not None and not 0.0 < enough <= 1.0:
        return f"enough must be above 0 and at most 1, got {enough}."
    return None if scorer is None else check_scorer(scorer)


@register("search", "best", exact=False, books=("best",))
class Best:
    """The sample that a scorer finds best, from no more samples than it takes to find a good one.

    Best-of-n, and repeated sampling with a checker (Brown et al. 2024, "Large Language Monkeys",
    arXiv:2407.21787): where a program can tell a right answer, sampling ends with the first one.
    Samples count in their order, so the same seed gives the same answer, whatever ran beside it
    and however long a checker takes. `ockham techniques measure search/best` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "best"
    Options: ClassVar[type[BestOptions]] = BestOptions
    Ask: ClassVar[type[BestAsk]] = BestAsk

    def __init__(self, options: BestOptions) -> None:
        self._options = options

    def begin(self, ask: BestAsk, problem: Problem) -> ScoredSamples | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        return ScoredSamples(settings, problem, scorer_of(settings.scorer, problem, self.name))


class ScoredSamples(Samples):
    """The samples of one request so far, and their scores. They count in their order."""

    scores: ClassVar[bool] = True
    settings: BestOptions

    def __init__(self, settings: BestOptions, problem: Problem, scorer: Scorer) -> None:
        super().__init__(settings, problem)
        self._scorer, self._scores = scorer, Scores()
        checked = settings.scorer.startswith(f"{CHECKER}:")
        self._enough = settings.enough or (1.0 if checked else None)
        self._counted = 0

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return [*self._scores.waits, *super().waits]

    def observer(self, branch: int) -> Observer | None:
        """See `SearchState`."""
        return self._scorer.observer(branch)

    def close(self) -> None:
        """See `SearchState`."""
        self._scores.cancel()
        super().close()

    def take(self, number: int, branch: Branch) -> bool:
        """See `Samples`."""
        if branch.finish_reason == "error":
            self._scores.fail(number, "the sample met an error")
        else:
            score = self._scorer.score(branch, 0, branch.length, branch.text)
            self._scores.add(number, score)
        return super().take(number, branch)

    def may_begin(self) -> int:
        """See `Samples`: where a score may be enough, those that wait for theirs run still."""
        if self._enough is None:
            return self.settings.samples
        return min(self.settings.samples, len(self._scores.known) + self.settings.parallel)

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        self._scores.settle()
        while self._counted in self._scores.known and self._counted in self.answers:
            score = self._scores.known[self._counted]
            self._counted += 1
            if self._enough is not None and score >= self._enough:
                return "enough"
        return "samples" if self._counted >= self.settings.samples else None

    def ranked(self) -> list[int]:
        """See `Samples`."""
        counted = range(self._counted)
        return sorted(counted, key=lambda n: (-self._scores.known[n], n))

    def counted(self) -> list[int]:
        """See `Samples`."""
        return list(range(self._counted)) or sorted(self.answers)

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        ranked = self.ranked()
        told: dict[str, Any] = {
            "answer": self.answers[ranked[0]] if ranked else None,
            "scores": [round(self._scores.known[n], 4) for n in range(self._counted)],
        }
        failed = sorted((n, why) for n, why in self._scores.failures.items() if n < self._counted)
        return {**told, "failed": {str(n): why for n, why in failed}} if failed else told
