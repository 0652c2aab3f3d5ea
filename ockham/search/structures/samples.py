"""Samples of one answer: drawn a few at a time, read, and counted until that is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.price import Work
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Drop,
    End,
    Finish,
    Fork,
    Hold,
    Problem,
    SearchOptions,
    SearchState,
)
from ockham.search.structures.answers import NUMBER, check_extract
from ockham.search.structures.readings import Readings, check_calls, check_programs

MOST_SAMPLES = 256
MOST_PARALLEL = 64
PARALLEL = 4
MOST_BUDGET = 1 << 40


class SampleOptions(SearchOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `samples` is the most that are drawn, `parallel` how many at once. `extract` says what of a text
    is its answer (see `structures.answers.Reader`); where it is "behaviour", the program in the
    text is run, and `calls` are evaluated: what they return is the answer. `budget` is the most
    tokens of all branches together: when it is used up, the answer is found among what there is.
    """

    samples: int = 16
    extract: str = NUMBER
    parallel: int = PARALLEL
    budget: int | None = None
    calls: list[str] = []

    def __post_init__(self) -> None:
        said = self.wrong()
        if said is not None:  # of an engine's options it is said already whose they are
            raise ConfigError(said)

    def wrong(self) -> str | None:
        """What of the settings cannot be; None if they can."""
        return wrong_samples(self)

    def works(self, prompt: int, tokens: int) -> list[Work]:
        """See `SearchOptions`: as many samples at once as may run, and then others."""
        at_once = min(self.parallel, self.samples)
        whole, rest = divmod(self.samples, at_once)
        waves = [at_once] * whole + [rest] * (rest > 0)
        return [Work(prompt, tokens, wave, held=place > 0) for place, wave in enumerate(waves)]


class SamplesAsk(Ask, kw_only=True, frozen=True):
    """As in the technique's options; what is None is as the engine has it."""

    asked_as: ClassVar[str]
    """The technique's name."""

    samples: int | None = None
    extract: str | None = None
    parallel: int | None = None
    budget: int | None = None
    calls: list[str] | None = None

    def __post_init__(self) -> None:
        said = self.wrong()
        if said is not None:
            raise InvalidRequest(f"{self.asked_as}: {said}")

    def wrong(self) -> str | None:
        """What of the settings cannot be; None if they can."""
        return wrong_samples(self)

    def check_params(self, params: SamplingParams) -> None:
        most = self.samples or MOST_SAMPLES
        if not 1 <= params.n <= most or params.temperature == 0.0 or params.max_tokens == 0:
            raise InvalidRequest(
                f"{self.asked_as} is over samples of one answer: it needs a temperature above 0, "
                f"max_tokens above 0, and n of at most {most} (that many answers are returned), "
                f"got temperature={params.temperature}, max_tokens={params.max_tokens} and "
                f"n={params.n}.",
                self.asked_as,
            )

    def sequences(self, choices: int) -> int:
        return self.parallel or PARALLEL


Settings = TypeVar("Settings", bound=SampleOptions)


def wrong_samples(settings: SampleOptions | SamplesAsk) -> str | None:
    """What of the settings that all such searches have cannot be; None if they can."""
    samples, parallel, budget = settings.samples, settings.parallel, settings.budget
    if samples is not None and not 2 <= samples <= MOST_SAMPLES:
        return f"samples must lie in [2, {MOST_SAMPLES}], got {samples}."
    if parallel is not None and not 1 <= parallel <= MOST_PARALLEL:
        return f"parallel must lie in [1, {MOST_PARALLEL}], got {parallel}."
    if budget is not None and not 1 <= budget <= MOST_BUDGET:
        return f"budget must lie in [1, {MOST_BUDGET}], got {budget}."
    if settings.extract is not None and (said := check_extract(settings.extract)) is not None:
        return said
    return check_calls(settings.calls or ())


def settled(options: Settings, ask: SamplesAsk, problem: Problem) -> Settings | None:
    """The settings of a request; None if it did not ask for the search, and makes no sense with
    one. Raises InvalidRequest if it asked, and cannot have it."""
    params = problem.params
    sampled = params.n == 1 and not params.greedy and params.max_tokens != 0
    if not problem.asked and not (sampled and problem.text):
        return None
    ask.check_params(params)
    if not problem.text:
        raise InvalidRequest(
            f"{ask.asked_as} reads answers from text, and this request has none; load a "
            "tokenizer, or leave detokenization on.",
            ask.asked_as,
        )
    settings = merged(options, ask)
    if params.n > settings.samples:
        raise InvalidRequest(
            f"n={params.n} answers are wanted of {settings.samples} samples; raise samples of "
            f"{ask.asked_as}.",
            ask.asked_as,
        )
    check_programs(settings.extract, settings.calls, problem, ask.asked_as)
    if ask.parallel is None:
        parallel = min(settings.parallel, problem.seats)
        settings = msgspec.structs.replace(settings, parallel=parallel)
    return settings


class Samples(SearchState):
    """The samples of one request so far. Sample i is branch i, and its noise stream that of choice
    i. A subclass says when they are enough (`decision`), which are not worth going on with
    (`stops`), and which choices are the answer (`ranked`)."""

    watches: ClassVar[bool] = True  # or a budget is noticed too late

    def __init__(self, settings: SampleOptions, problem: Problem) -> None:
        self.settings = settings
        self.wanted = problem.params.n
        self._prompt_tokens = len(problem.prompt)
        self.readings = Readings(settings.extract, settings.calls, problem.programs)
        self.begun = self.begins
        self.answers = self.readings.known
        """Of samples that have ended, by number: None of one that has none, or was stopped."""
        self.lengths: dict[int, int] = {}
        """Tokens of samples that have ended."""
        self.stopped: set[int] = set()
        """Samples that were ended before their time."""

    @property
    def begins(self) -> int:
        """See `SearchState`."""
        return min(self.settings.parallel, self.settings.samples)

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return self.begins

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return self.readings.waits

    def close(self) -> None:
        """See `SearchState`."""
        self.readings.cancel()

    # -- what a subclass says ------------------------------------------------------------------

    def take(self, number: int, branch: Branch) -> bool:
        """A sample has ended by itself: whether it may have an answer. A subclass may note more of
        it."""
        return branch.finish_reason != "error"

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """Why no more is needed; None while it is."""
        raise NotImplementedError

    def stops(self, branches: Mapping[int, Branch]) -> Iterable[int]:
        """Running samples that are not worth going on with."""
        return ()

    def may_begin(self) -> int:
        """How many samples there may be by now."""
        return self.settings.samples

    def ranked(self) -> list[int]:
        """The samples that have ended, the best first."""
        raise NotImplementedError

    def counted(self) -> list[int]:
        """The samples that the answer was found among."""
        return sorted(self.answers)

    def told(self) -> dict[str, Any]:
        """What the report says beside what it always does."""
        return {}

    # -- the flow ------------------------------------------------------------------------------

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        ended = [n for n, b in branches.items() if b.finish_reason and n not in self.lengths]
        for number in ended:
            self.lengths[number] = branches[number].length
            if number not in self.stopped and self.take(number, branches[number]):
                self.readings.add(number, branches[number].text)
            else:
                self.readings.none(number)
        self.readings.settle()
        running = [n for n, b in branches.items() if b.finish_reason is None]
        reason = self.decision(branches)
        budget = self.settings.budget
        if reason is None and budget is not None:
            made = sum(self.lengths.values()) + sum(branches[n].length for n in running)
            if made >= budget:
                if self.waits:  # what has ended counts, however long it takes to be judged
                    return [Hold(number) for number in running]
                reason = "budget"
        if reason is not None:
            return self._finish(branches, reason)
        stops = [n for n in self.stops(branches) if n in running]
        self.stopped.update(stops)
        actions: list[Action | Finish] = [End(number) for number in stops]
        going_on = [n for n in running if n not in self.stopped]
        room = self.settings.parallel - len(going_on)
        more = range(self.begun, min(self.begun + room, self.may_begin()))
        self.begun = max(self.begun, more.stop)
        if not going_on and not len(more) and not stops and not self.waits:
            return self._finish(branches, "samples")
        # One that has just ended has the state of the prompt still, and so has one that runs.
        source = next(iter([*ended, *going_on, *branches]))
        return [*actions, *(Fork(source, number, 0) for number in more)]

    def _finish(self, branches: Mapping[int, Branch], reason: str) -> list[Action | Finish]:
        settings, counted = self.settings, self.counted()
        lengths = [self.lengths[n] for n in counted]
        whole = [self.lengths[n] for n in counted if n not in self.stopped] or lengths
        typical = round(sum(whole) / len(whole)) if whole else 0
        choices = self.ranked()[: self.wanted]
        fallback: str | None = None
        if not choices:  # none has ended: the longest says most
            running = [n for n in branches if n not in self.answers]
            best = max(running, key=lambda n: (branches[n].length, -n), default=min(branches))
            choices = [best]
            fallback = self.readings.read(branches[best].text)
        late = [n for n in branches if n not in counted and n not in choices]
        late += sorted(self.stopped.intersection(counted, branches).difference(choices))
        lengths_of = {n: branch.length for n, branch in branches.items()}
        spared = [(lengths_of[n], typical) for n in late]
        spared += [(0, typical)] * (settings.samples - self.begun)
        made = sum(lengths_of.values())
        report: dict[str, Any] = {
            **self.told(),
            "samples": len(counted),
            "of": settings.samples,
            "tokens": sum(lengths),
            "stopped": reason,
            "branches": self.begun,
            "cancelled": len(late),
            "tokens_made": made,
            "tokens_spared": sum(max(0, stop - start) for start, stop in spared),
            "tokens_shared": (self.begun - 1) * self._prompt_tokens,
            **self.readings.told(counted),
        }
        if report.get("answer") is None:
            report["answer"] = fallback
        return [*map(Drop, late), Finish(choices, spared, report, cut=reason == "budget")]


def votes_told(answers: Mapping[str, float], empty: int) -> dict[str, Any]:
    """What a report says of a vote whose answers have these counts or weights, the first first."""
    return {
        "answer": next(iter(answers), None),
        "answers": dict(answers),
        "without_answer": empty,
    }
