"""Samples until the majority of their answers is clear."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import comb
from typing import ClassVar, Literal

import msgspec

from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Action, Branch, Drop, Finish, Fork, Problem, SearchState
from ockham.text.pattern import Pattern, TooSlow

MOST_SAMPLES = 256
MOST_PARALLEL = 64
MOST_ANSWER = 1000
"""Characters of an answer that are compared."""
LINE, NUMBER = "last line", "last number"
_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?")
CERTAIN: Literal["certain"] = "certain"
PARALLEL = 4

Stop = Literal["certain"] | float


class VoteOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `samples` is the most that are drawn, `parallel` how many at once. `extract` says what of a text
    is its answer: "last number", "last line", or a regular expression, whose group captures it
    where it matches last. `stop` is when no more are drawn: "certain", when those that are left
    cannot change the majority, or a probability, when the answer that leads is the most frequent
    one of all that the model gives, with this probability.
    """

    samples: int = 16
    extract: str = NUMBER
    stop: Stop = 0.95
    parallel: int = PARALLEL

    def __post_init__(self) -> None:
        _check(self.samples, self.extract, self.stop, self.parallel, ConfigError)


class VoteAsk(Ask, kw_only=True, frozen=True):
    """As in `VoteOptions`; what is None is as the engine's options have it."""

    samples: int | None = None
    extract: str | None = None
    stop: Stop | None = None
    parallel: int | None = None

    def __post_init__(self) -> None:
        _check(self.samples, self.extract, self.stop, self.parallel, InvalidRequest)

    def check_params(self, params: SamplingParams) -> None:
        if params.n != 1 or params.temperature == 0.0 or params.max_tokens == 0:
            raise InvalidRequest(
                "a vote is over samples of one answer: it needs n=1, a temperature above 0 and "
                f"max_tokens above 0, got n={params.n}, temperature={params.temperature} and "
                f"max_tokens={params.max_tokens}.",
                "vote",
            )

    def sequences(self, choices: int) -> int:
        return self.parallel or PARALLEL


def _check(
    samples: int | None,
    extract: str | None,
    stop: Stop | None,
    parallel: int | None,
    error: type[ConfigError | InvalidRequest],
) -> None:
    """Raise `error` for a setting that cannot be."""
    said = None
    if samples is not None and not 2 <= samples <= MOST_SAMPLES:
        said = f"samples must lie in [2, {MOST_SAMPLES}], got {samples}."
    elif parallel is not None and not 1 <= parallel <= MOST_PARALLEL:
        said = f"parallel must lie in [1, {MOST_PARALLEL}], got {parallel}."
    elif isinstance(stop, int | float) and not 0.5 < stop < 1.0:
        said = f'stop must be "certain" or a probability above 0.5 and below 1, got {stop}.'
    elif extract is not None and extract not in (LINE, NUMBER):
        try:
            Pattern(extract)
        except ValueError as reason:
            said = f"extract is {shown(extract)}, which cannot be used: {reason}."
    if said is not None:  # of an engine's options it is said already whose they are
        raise error(said if error is ConfigError else f"vote: {said}")


@register("search", "vote", exact=False, books=("vote",))
class Vote:
    """The answer that most samples give, from no more samples than it takes to know.

    Self-consistency (Wang et al. 2022, arXiv:2203.11171) draws a number of samples. Here the
    answers so far say whether the vote is decided: for certain, or by the Beta criterion of
    Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860). Then no more are drawn, and the
    caller gets the first sample that gives the majority's answer. It saves the rows of the others.
    It is approximate, as it says something else than one sample would. But samples are the choices
    that `n` would give, and they count in their order: the same seed gives the same answer,
    whatever ran beside it. `ockham techniques measure search/vote` measures it.
    """

    name: ClassVar[str] = "vote"
    Options: ClassVar[type[VoteOptions]] = VoteOptions
    Ask: ClassVar[type[VoteAsk]] = VoteAsk

    def __init__(self, options: VoteOptions) -> None:
        self._options = options

    def begin(self, ask: VoteAsk, problem: Problem) -> Votes | None:
        """See `Search`."""
        params = problem.params
        sampled = params.n == 1 and not params.greedy and params.max_tokens != 0
        if not problem.asked and not (sampled and problem.text):
            return None
        ask.check_params(params)
        if not problem.text:
            raise InvalidRequest(
                "a vote reads answers from text, and this request has none; load a tokenizer, or "
                "leave detokenization on.",
                "vote",
            )
        given = msgspec.structs.asdict(ask)
        said = {name: value for name, value in given.items() if value is not None}
        settings = msgspec.structs.replace(self._options, **said)
        if ask.parallel is None:
            parallel = min(settings.parallel, problem.seats)
            settings = msgspec.structs.replace(settings, parallel=parallel)
        return Votes(settings)


class Votes(SearchState):
    """The samples of one request so far. Sample i is branch i, and its noise stream that of choice
    i. They count in this order: one that ends early waits for those before it."""

    def __init__(self, settings: VoteOptions) -> None:
        self._settings = settings
        self._read = Reader(settings.extract)
        self._begun = self.begins
        self._answers: dict[int, str | None] = {}
        """Of samples that have ended."""
        self._counted = 0
        self._tally = Tally(settings.samples)

    @property
    def begins(self) -> int:
        """See `SearchState`."""
        return min(self._settings.parallel, self._settings.samples)

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return self.begins

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        ended = [n for n, b in branches.items() if b.finish_reason and n not in self._answers]
        for number in ended:
            broken = branches[number].finish_reason == "error"
            self._answers[number] = None if broken else self._read(branches[number].text)
        while self._counted in self._answers and not self._decided:
            self._tally.add(self._answers[self._counted])
            self._counted += 1
        if self._decided:
            return self._finish(branches)
        more = range(self._begun, min(self._begun + len(ended), self._settings.samples))
        self._begun = max(self._begun, more.stop)
        return [Fork(old, new, 0) for old, new in zip(ended, more, strict=False)]

    @property
    def _decided(self) -> bool:
        tally, stop = self._tally, self._settings.stop
        if tally.certain:
            return True
        return not isinstance(stop, str) and tally.confidence >= stop

    def _finish(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        tally, samples = self._tally, self._settings.samples
        lengths = [len(branches[n].tokens) for n in range(self._counted)]
        typical = round(sum(lengths) / len(lengths))
        late = [n for n in branches if n >= self._counted]
        spared = [(len(branches[n].tokens) if n in branches else 0, typical) for n in late]
        spared += [(0, typical)] * (samples - self._begun)
        winner = tally.first[tally.answer] if tally.answer is not None else 0
        report = {
            "answer": tally.answer,
            "answers": dict(tally.counts.most_common()),
            "without_answer": tally.empty,
            "samples": self._counted,
            "of": samples,
            "tokens": sum(lengths),
            "tokens_spared": sum(max(0, stop - start) for start, stop in spared),
        }
        return [*map(Drop, late), Finish([winner], spared, report)]


class Tally:
    """The answers that were counted, of so many that there may be."""

    def __init__(self, samples: int) -> None:
        self._left = samples
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}
        """By which sample each answer was given first: of two as frequent, the earlier wins."""
        self.empty = 0
        """Samples without an answer."""
        self._counted = 0

    def add(self, answer: str | None) -> None:
        """Count the next sample."""
        self._left -= 1
        if answer is None:
            self.empty += 1
        else:
            self.first.setdefault(answer, self._counted)
            self.counts[answer] += 1
        self._counted += 1

    @property
    def _ranked(self) -> list[str]:
        return sorted(self.counts, key=lambda each: (-self.counts[each], self.first[each]))

    @property
    def answer(self) -> str | None:
        """The answer that leads; None while there is none."""
        return next(iter(self._ranked), None)

    @property
    def certain(self) -> bool:
        """Whether the samples that are left cannot change which answer wins. A new answer would
        have come later than the one that leads, so it does not win with as many."""
        if not self._left:
            return True
        ranked = self._ranked
        if not ranked or self._left > self.counts[ranked[0]]:
            return False
        leader = ranked[0]
        ahead = [self.counts[leader] - self.counts[other] for other in ranked[1:]]
        earlier = [self.first[leader] < self.first[other] for other in ranked[1:]]
        return all(
            votes > self._left or (votes == self._left and first)
            for votes, first in zip(ahead, earlier, strict=True)
        )

    @property
    def confidence(self) -> float:
        """How probable it is that the answer that leads is given more often than the second, with
        all shares as likely before any sample: that a Beta(a + 1, b + 1) variable is above 1/2,
        where a and b are their counts. It is a sum of binomials, as a and b are integers."""
        counts = [count for _, count in self.counts.most_common(2)]
        if not counts:
            return 0.0
        most, second = counts[0], counts[1] if len(counts) > 1 else 0
        tosses = most + second + 1
        heads: int = sum(comb(tosses, count) for count in range(most + 1))
        return float(heads / 2**tosses)


class Reader:
    """Finds the answer of a text, or None. An expression that takes too long on one text is not
    tried on another: whoever sends a hostile one takes 50 ms once."""

    def __init__(self, extract: str) -> None:
        self._extract = extract
        self._pattern = None if extract in (LINE, NUMBER) else Pattern(extract)

    def __call__(self, text: str) -> str | None:
        found: str | None = None
        if self._extract == NUMBER:
            numbers = _NUMBER.findall(text)
            found = numbers[-1].replace(",", "").removeprefix("+") if numbers else None
        elif self._extract == LINE:
            found = next((line for line in reversed(text.splitlines()) if line.strip()), None)
        elif self._pattern is not None:
            try:
                found = self._pattern.last(text)
            except TooSlow:
                self._pattern = None
        return found.strip()[:MOST_ANSWER] if found and found.strip() else None
