"""Samples until the majority of their answers is clear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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

WINDOW = 4

Stop = Literal["certain", "window"] | float


class VoteOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `samples` is the most that are drawn, `parallel` how many at once. `extract` says what of a text
    is its answer: "last number", "last line", "choice", "text", "json:FIELD", or a regular
    expression, whose group captures it where it matches last. `stop` is when no more are drawn:
    "certain", when those that are left cannot change the majority; "window", when `window` samples
    in a row agree; or a probability, when the answer that leads is the most frequent one of all
    that the model gives, with this probability. `budget` is the most tokens of all samples.
    """

    stop: Stop = 0.95
    window: int = WINDOW

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return wrong_samples(self) or _wrong(self)


class VoteAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `VoteOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "vote"

    stop: Stop | None = None
    window: int | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return wrong_samples(self) or _wrong(self)


def _wrong(settings: VoteOptions | VoteAsk) -> str | None:
    stop, window = settings.stop, settings.window
    if isinstance(stop, int | float) and not 0.5 < stop < 1.0:
        return f'stop must be "certain", "window" or a probability above 0.5, below 1, got {stop}.'
    if window is not None and window < 2:
        return f"window must be at least 2, got {window}."
    return None


@register("search", "vote", exact=False, books=("vote",))
class Vote:
    """The answer that most samples give, from no more samples than it takes to know.

    Self-consistency (Wang et al. 2022, arXiv:2203.11171) draws a number of samples. Here the
    answers so far say whether the vote is decided: for certain, by the Beta criterion of
    Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860), or by a window of samples that
    agree (Li et al. 2024, arXiv:2401.10480). Then no more are drawn, and the
    caller gets the first sample that gives the majority's answer. It saves the rows of the others.
    It is approximate, as it says something else than one sample would. But samples are the choices
    that `n` would give, and they count in their order: the same seed gives the same answer,
    whatever ran beside it. `ockham techniques measure search/vote` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "vote"
    Options: ClassVar[type[VoteOptions]] = VoteOptions
    Ask: ClassVar[type[VoteAsk]] = VoteAsk

    def __init__(self, options: VoteOptions) -> None:
        self._options = options

    def begin(self, ask: VoteAsk, problem: Problem) -> Votes | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        return None if settings is None else Votes(settings, problem)


class Votes(Samples):
    """The samples of one request so far. They count in their order: one that ends early waits for
    those before it."""

    settings: VoteOptions

    def __init__(self, settings: VoteOptions, problem: Problem) -> None:
        super().__init__(settings, problem)
        self._counted = 0
        self._alike = 0
        """How many of the samples that were counted last agree."""
        self._tally = Tally(settings.samples)

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        while (reason := self._decided) is None and self._counted in self.answers:
            self._count(self.answers[self._counted])
        return reason

    def ranked(self) -> list[int]:
        """See `Samples`."""
        return self._tally.samples(self.answers)

    def counted(self) -> list[int]:
        """See `Samples`."""
        return list(range(self._counted))

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        return votes_told(dict(self._tally.counts.most_common()), self._tally.empty)

    def _count(self, answer: str | None) -> None:
        same = answer is not None and self._counted and answer == self.answers[self._counted - 1]
        self._alike = self._alike + 1 if same else int(answer is not None)
        self._tally.add(answer)
        self._counted += 1

    @property
    def _decided(self) -> str | None:
        tally, stop = self._tally, self.settings.stop
        if tally.certain:
            return "certain" if tally.left else "samples"
        if isinstance(stop, float | int) and tally.confidence >= stop:
            return "confidence"
        return "window" if stop == "window" and self._alike >= self.settings.window else None
