"""A small model answers, and the model itself only if that is not good enough."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import ClassVar

import msgspec

from ockham.core import asks
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import (
    Action,
    Branch,
    Companion,
    Continue,
    Finish,
    Problem,
    Write,
    Writer,
    Written,
)
from ockham.search.structures.answers import NUMBER, Reader, check_extract
from ockham.search.structures.pairs import (
    MAIN,
    Pair,
    check_one,
    companion_of,
    fits,
    least_probability,
    mean_probability,
)
from ockham.search.structures.scorers import CHECKER, REWARD, Scorer, known, scorer_of

MEAN, LEAST, AGREEMENT = "mean", "least", "agreement"
MOST_SAMPLES = 64
_NAME = "cascade"


class CascadeOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `model` is the companion that answers first; None: the only one there is. Its answer is taken if
    it scores at least `sure`, by `by`: "mean" is the geometric mean of the probabilities of its
    tokens, "least" the probability of the least likely one, "agreement" the share of `samples`
    answers that say the same, as `extract` reads them, "checker:NAME" what a program says, and
    "reward:NAME" what a reward model does.
    """

    model: str | None = None
    by: str = LEAST
    sure: float = 0.5
    samples: int = 4
    extract: str = NUMBER

    def __post_init__(self) -> None:
        if self.by not in (MEAN, LEAST, AGREEMENT) and not _judged(self.by):
            raise ConfigError(
                f"by must be {MEAN}, {LEAST}, {AGREEMENT}, {CHECKER}:NAME or {REWARD}:NAME, got "
                f"{shown(self.by)}."
            )
        if not 0.0 < self.sure <= 1.0:
            raise ConfigError(f"sure must be above 0 and at most 1, got {self.sure}.")
        if not 2 <= self.samples <= MOST_SAMPLES:
            raise ConfigError(f"samples must lie in [2, {MOST_SAMPLES}], got {self.samples}.")
        if (said := check_extract(self.extract)) is not None:
            raise ConfigError(said)


def _judged(by: str) -> bool:
    """Whether a program or a reward model says how good an answer is."""
    kind, _, name = by.partition(":")
    return kind in (CHECKER, REWARD) and bool(name)


@register("search", _NAME, exact=False, books=(_NAME,), paper="56")
class Cascade:
    """A companion answers; the model does so only if that answer is not good enough.

    The cascade of FrugalGPT (Chen et al. 2023, arXiv:2305.05176) and of the routing survey (paper
    56), by how sure the companion was, by the agreement of its samples, or by a program or a reward
    model. What the model never computes is saved; a companion's answer that is turned down was for
    nothing. By "least", it is given up at the first token that is not sure enough. `ockham
    techniques measure search/cascade` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("products",)
    name: ClassVar[str] = _NAME
    needs_companion: ClassVar[bool] = True
    Options: ClassVar[type[CascadeOptions]] = CascadeOptions
    Ask: ClassVar[type[asks.Ask]] = asks.ask_like(CascadeOptions, _NAME, check_one(_NAME))

    def __init__(self, options: CascadeOptions) -> None:
        self._options = options

    def begin(self, ask: asks.Ask, problem: Problem) -> Answered | None:
        """See `Search`."""
        settings = asks.merged(self._options, ask)
        sampled = settings.by == AGREEMENT
        reads = sampled or _judged(settings.by)
        if not problem.asked and not (
            fits(problem)
            and (problem.text or not reads)
            and not (sampled and problem.params.greedy)
        ):
            return None
        ask.check_params(problem.params)
        if reads and not problem.text:
            raise InvalidRequest(
                f"{_NAME} reads answers from text, and this request has none; load a tokenizer, or "
                "leave detokenization on.",
                _NAME,
            )
        if sampled and problem.params.greedy:
            raise InvalidRequest(
                f"{_NAME} by {AGREEMENT} is over samples: it needs a temperature above 0.", _NAME
            )
        judge = scorer_of(settings.by, problem, _NAME) if _judged(settings.by) else None
        who, companion = companion_of(settings.model, problem, _NAME)
        return Answered(settings, who, companion, judge)


class Answered(Pair):
    """One request: the companion's answers, their score, and the model's own if it needs one."""

    def __init__(
        self,
        settings: CascadeOptions,
        who: str,
        companion: Companion,
        judge: Scorer | None,
    ) -> None:
        super().__init__()
        self._settings, self._who = settings, who
        self._companion, self._judge = companion, judge
        self._read = Reader(settings.extract)
        self._writers: list[Writer] = []
        self._coming: list[Future[Written]] = []
        self._written: Written | None = None
        self._verdict: Future[float] | None = None
        self._score: float | None = None
        self._turned_down = False
        self._made = 0
        """Tokens of the companion."""

    def close(self) -> None:
        """See `SearchState`."""
        if self._verdict is not None:
            self._verdict.cancel()

    def go_on(self, main: Branch) -> list[Action | Finish]:
        """See `Pair`."""
        if self._turned_down:
            return [] if main.finish_reason is None else [self._finish("model", main)]
        if not self._coming:
            self._coming = self._ask()
            self.await_(*self._coming)
            return []
        if self._score is None:
            if not all(each.done() for each in self._coming):
                return []
            if self._verdict is None:
                self._verdict = self._judge_answers(main)
                if not self._verdict.done():
                    self.await_(self._verdict)
                    return []
            elif not self._verdict.done():
                return []
            self._score = self._scored(self._verdict)
            if self._score < self._settings.sure or self._written is None:
                self._turned_down = True
                for writer in self._writers:
                    writer.give_up()
                return [Continue(MAIN)]
            return [Write(MAIN, self._written.tokens)]
        assert main.finish_reason is not None, "a whole text ends what it is written into"
        return [self._finish(self._who, main)]

    # -- inside --------------------------------------------------------------------------------

    def _ask(self) -> list[Future[Written]]:
        samples = self._settings.samples if self._settings.by == AGREEMENT else 1
        until = self._hopeless if self._settings.by == LEAST else None
        self._writers = [self._companion.open(number) for number in range(samples)]
        return [writer.go_on(until=until) for writer in self._writers]

    def _hopeless(self, branch: Branch, start: int) -> bool:
        """Whether the text need not be written on: its least likely token decides."""
        return branch.scores.logprobs[-1] < math.log(self._settings.sure)

    def _judge_answers(self, main: Branch) -> Future[float]:
        """How good the companion's answer is."""
        found = [written for each in self._coming if (written := self.taken(each)) is not None]
        self._made = sum(len(each.tokens) for each in found)
        whole = [each for each in found if each.finish_reason == "stop"]
        if not whole:
            return known(0.0)
        self._written = whole[0]
        by = self._settings.by
        if by == AGREEMENT:
            return known(self._agreement(whole))
        if self._judge is not None:
            return self._judge.score(main, 0, len(whole[0].tokens), whole[0].text)
        measure = mean_probability if by == MEAN else least_probability
        return known(measure(whole[0].scores))

    def _agreement(self, whole: Sequence[Written]) -> float:
        """The share of all samples whose answer is the most frequent one, of which the first is
        taken."""
        answers = [self._read(each.text) for each in whole]
        counts = Counter(answer for answer in answers if answer is not None)
        if not counts:
            return 0.0
        answer, count = counts.most_common(1)[0]
        self._written = whole[answers.index(answer)]
        return count / self._settings.samples

    def _scored(self, verdict: Future[float]) -> float:
        error = verdict.exception()
        if error is None:
            return verdict.result()
        self.failure = str(error)
        return 0.0

    def _finish(self, who: str, main: Branch) -> Finish:
        assert self._score is not None, "it was scored before"
        taken = who != "model"
        report = self.told(
            answered_by=who,
            score=round(self._score, 4),
            tokens=main.length,
            tokens_of_companion=self._made,
        )
        return Finish([MAIN], [(0, main.length)] if taken else (), report)
