"""Samples that are given up while they are written, where others are more promising."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Action, Branch, Continue, Finish, Hold, Observer, Problem
from ockham.search.structures.samples import (
    MOST_PARALLEL,
    SampleOptions,
    Samples,
    SamplesAsk,
    settled,
    votes_told,
)
from ockham.search.structures.scorers import LIKELIHOOD, Scorer, Scores, check_scorer, scorer_of
from ockham.search.structures.tally import weigh

SAMPLES = 8
MOST_AFTER = 1 << 20


class PromisingOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    All `samples` begin together. After `after` tokens of each, and whenever they are twice as long
    as at the last look, the share `keep` of those that run go on, the ones that `scorer` finds best
    so far ("likelihood", "confidence", "reward:NAME", "probe:NAME" or "checker:NAME"), but no fewer
    than `least`. If the best is at least `enough`, it goes on alone. Answers of those that are
    complete weigh as much as their scores. `extract` says what of a text is its answer, `budget` is
    the most tokens of all samples. `parallel` is as many as there are samples.
    """

    samples: int = SAMPLES
    after: int = 32
    keep: float = 0.5
    least: int = 2
    enough: float | None = None
    scorer: str = LIKELIHOOD

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return super().wrong() or _wrong(self)


class PromisingAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `PromisingOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "promising"

    after: int | None = None
    keep: float | None = None
    least: int | None = None
    enough: float | None = None
    scorer: str | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return super().wrong() or _wrong(self)

    def sequences(self, choices: int) -> int:
        return self.samples or SAMPLES


def _wrong(settings: PromisingOptions | PromisingAsk) -> str | None:
    after, keep, least, enough = settings.after, settings.keep, settings.least, settings.enough
    if settings.samples is not None and settings.samples > MOST_PARALLEL:
        return f"samples run all at once: there may be {MOST_PARALLEL}, got {settings.samples}."
    if after is not None and not 1 <= after <= MOST_AFTER:
        return f"after must lie in [1, {MOST_AFTER}], got {after}."
    if keep is not None and not 0.0 < keep < 1.0:
        return f"keep must be above 0 and below 1, got {keep}."
    if least is not None and least < 1:
        return f"least must be at least 1, got {least}."
    if enough is not None and not 0.0 < enough <= 1.0:
        return f"enough must be above 0 and at most 1, got {enough}."
    return None if settings.scorer is None else check_scorer(settings.scorer)


@register("search", "promising", exact=False, books=("promising",))
class Promising:
    """Samples are compared while they are written, and the less promising half is given up.

    Adaptive inference-time compute (Manvi et al. 2024, arXiv:2410.02725): a model can tell in the
    middle of its samples which of them are worth going on with. The paper trains the model to say
    so. Here a scorer does: by default how probable the sample's tokens were to the model, which
    needs no training; a probe or a reward model may. All samples are looked at after the same
    numbers of tokens, so the same seed gives the same answer, whatever ran beside it. `ockham
    techniques measure search/promising` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "promising"
    Options: ClassVar[type[PromisingOptions]] = PromisingOptions
    Ask: ClassVar[type[PromisingAsk]] = PromisingAsk

    def __init__(self, options: PromisingOptions) -> None:
        self._options = options

    def begin(self, ask: PromisingAsk, problem: Problem) -> LookedAt | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        samples = settings.samples
        if ask.samples is None:
            samples = min(samples, max(2, problem.seats))
        if samples > problem.seats:
            raise InvalidRequest(
                f"promising runs all {samples} samples at once, and the engine runs "
                f"{problem.seats}; lower samples, or raise --max-num-seqs.",
                "promising",
            )
        settings = msgspec.structs.replace(settings, samples=samples, parallel=samples)
        return LookedAt(settings, problem, scorer_of(settings.scorer, problem, self.name))


class LookedAt(Samples):
    """The samples of one request so far."""

    scores: ClassVar[bool] = True
    settings: PromisingOptions

    def __init__(self, settings: PromisingOptions, problem: Problem, scorer: Scorer) -> None:
        super().__init__(settings, problem)
        self._scorer = scorer
        self._at: int | None = settings.after
        """After how many tokens the next look is; None if there is none."""
        self._look = Scores()
        """What the samples seem to be worth at the next look."""
        self._seen: set[int] = set()
        """Samples that the next look has seen."""
        self._late: list[int] = []
        """Samples that the last look gave up."""
        self._found = Scores()
        """What complete samples are worth."""

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return max(1, self.settings.samples - len(self.lengths))

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return [*self._look.waits, *self._found.waits, *super().waits]

    def observer(self, branch: int) -> Observer | None:
        """See `SearchState`."""
        return self._scorer.observer(branch)

    def close(self) -> None:
        """See `SearchState`."""
        self._look.cancel()
        self._found.cancel()
        super().close()

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        rests = self._looks(branches)
        actions = super().after(branches)
        if any(isinstance(action, Finish) for action in actions):
            return actions
        return [*actions, *rests]

    def take(self, number: int, branch: Branch) -> bool:
        """See `Samples`."""
        if branch.finish_reason == "error":
            self._found.fail(number, "the sample met an error")
        else:
            score = self._scorer.score(branch, 0, branch.length, branch.text)
            self._found.add(number, score)
        return super().take(number, branch)

    def stops(self, branches: Mapping[int, Branch]) -> Iterable[int]:
        """See `Samples`."""
        return self._late

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        self._found.settle()
        whole = range(self.settings.samples)
        left = (n for n in whole if n not in self.stopped and n not in self._late)
        known = all(n in self.answers and n in self._found.known for n in left)
        return "samples" if known else None

    def ranked(self) -> list[int]:
        """See `Samples`: of each answer the most promising sample."""
        scores = self._found.known
        voting = {n: scores[n] for n in self.answers if n in scores and n not in self.stopped}
        order = sorted(voting, key=lambda n: (-voting[n], n))
        best = [next(n for n in order if self.answers[n] == a) for a in weigh(self.answers, voting)]
        return [*best, *(n for n in order if n not in best)]

    def counted(self) -> list[int]:
        """See `Samples`."""
        return [n for n in sorted(self.answers) if n not in self.stopped]

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        voting = {n: self._found.known.get(n, 0.0) for n in self.counted()}
        weights = weigh(self.answers, voting)
        told = votes_told(
            {answer: round(weight, 4) for answer, weight in weights.items()},
            sum(self.answers[n] is None for n in voting),
        )
        told["given_up"] = len(self.stopped)
        why = {str(n): said for n, said in sorted(self._found.failures.items())}
        return {**told, "failed": why} if why else told

    # -- inside --------------------------------------------------------------------------------

    def _looks(self, branches: Mapping[int, Branch]) -> list[Action]:
        """Let those rest that have come as far as the next look. If all have, choose."""
        self._late = []
        if self._at is None:
            return []
        running = [
            n for n, b in branches.items() if b.finish_reason is None and n not in self.stopped
        ]
        rests: list[Action] = []
        for number in running:
            branch = branches[number]
            if branch.length >= self._at and number not in self._seen:
                self._seen.add(number)
                text = branch.text[: branch.characters(self._at)]
                self._look.add(number, self._scorer.score(branch, 0, self._at, text))
                rests.append(Hold(number))
        self._look.settle()
        if any(n not in self._look.known for n in running):
            return rests
        return self._chosen(running)

    def _chosen(self, running: list[int]) -> list[Action]:
        """All that run have been looked at: which go on."""
        settings, worth = self.settings, self._look.known
        order = sorted(running, key=lambda n: (-worth[n], n))
        kept = order[: max(settings.least, math.ceil(len(order) * settings.keep))]
        if settings.enough is not None and order and worth[order[0]] >= settings.enough:
            kept = order[:1]
        self._late = [n for n in order if n not in kept]
        self._look, self._seen = Scores(), set()
        assert self._at is not None, "this is a look"
        self._at = self._at * 2 if len(kept) > settings.least else None
        return [Continue(number) for number in kept]
