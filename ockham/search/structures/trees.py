"""Trees of steps: branches that stop where a step ends, are scored, and give way to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.price import Work
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Drop,
    Finish,
    Hold,
    Observer,
    Problem,
    SearchOptions,
    SearchState,
    Split,
)
from ockham.search.structures.answers import NUMBER, check_extract
from ockham.search.structures.readings import Readings, check_calls, check_programs
from ockham.search.structures.samples import MOST_BUDGET
from ockham.search.structures.scorers import LIKELIHOOD, Scorer, Scores, check_scorer
from ockham.search.structures.tally import weigh

MOST_WIDTH = 256
MOST_BORDER = 100
MOST_STEP = 1 << 14
WIDTH = 8

Choose = Literal["vote", "best"]


class TreeOptions(SearchOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `width` is how many branches there are, those included that are complete. A step ends with
    `border`, or after `step` tokens. `scorer` says how good a branch is ("likelihood",
    "confidence", "checker:NAME", "reward:NAME" or "probe:NAME"), by its latest step, or a checker
    or a reward model by all of its text. `choose` says which complete one is the answer: the
    "best", or of the answer ("vote", as `extract` reads it) that weighs most by scores; `calls` are
    evaluated where `extract` is "behaviour". `budget` is the most tokens of all branches.
    """

    width: int = WIDTH
    border: str = "\n"
    step: int = 256
    scorer: str = LIKELIHOOD
    choose: Choose = "vote"
    extract: str = NUMBER
    budget: int | None = None
    calls: list[str] = []

    def __post_init__(self) -> None:
        said = self.wrong()
        if said is not None:
            raise ConfigError(said)

    def wrong(self) -> str | None:
        """What of the settings cannot be; None if they can."""
        return _wrong(self)

    def works(self, prompt: int, tokens: int) -> list[Work]:
        """See `SearchOptions`: all branches at once."""
        return [Work(prompt, tokens, self.width)]


class TreeAsk(Ask, kw_only=True, frozen=True):
    """As in the technique's options; what is None is as the engine has it."""

    asked_as: ClassVar[str]
    """The technique's name."""

    width: int | None = None
    border: str | None = None
    step: int | None = None
    scorer: str | None = None
    choose: Choose | None = None
    extract: str | None = None
    budget: int | None = None
    calls: list[str] | None = None

    def __post_init__(self) -> None:
        said = self.wrong()
        if said is not None:
            raise InvalidRequest(f"{self.asked_as}: {said}")

    def wrong(self) -> str | None:
        """What of the settings cannot be; None if they can."""
        return _wrong(self)

    def check_params(self, params: SamplingParams) -> None:
        most = self.width or MOST_WIDTH
        if not 1 <= params.n <= most or params.temperature == 0.0 or params.max_tokens == 0:
            raise InvalidRequest(
                f"{self.asked_as} samples its steps: it needs a temperature above 0, max_tokens "
                f"above 0, and n of at most {most}, got temperature={params.temperature}, "
                f"max_tokens={params.max_tokens} and n={params.n}.",
                self.asked_as,
            )

    def sequences(self, choices: int) -> int:
        return self.width or WIDTH


Settings = TypeVar("Settings", bound=TreeOptions)


def _wrong(settings: TreeOptions | TreeAsk) -> str | None:
    width, border, step, budget = settings.width, settings.border, settings.step, settings.budget
    if width is not None and not 2 <= width <= MOST_WIDTH:
        return f"width must lie in [2, {MOST_WIDTH}], got {width}."
    if border is not None and not 1 <= len(border) <= MOST_BORDER:
        return f"border must have 1 to {MOST_BORDER} characters, got {len(border)}."
    if step is not None and not 1 <= step <= MOST_STEP:
        return f"step must lie in [1, {MOST_STEP}], got {step}."
    if budget is not None and not 1 <= budget <= MOST_BUDGET:
        return f"budget must lie in [1, {MOST_BUDGET}], got {budget}."
    if settings.scorer is not None and (said := check_scorer(settings.scorer)) is not None:
        return said
    if settings.extract is not None and (said := check_extract(settings.extract)) is not None:
        return said
    return check_calls(settings.calls or ())


def settled(options: Settings, ask: TreeAsk, problem: Problem) -> Settings | None:
    """The settings of a request; None if it did not ask for the search, and makes no sense with
    one. Raises InvalidRequest if it asked, and cannot have it."""
    params = problem.params
    sampled = params.n == 1 and not params.greedy and params.max_tokens != 0
    if not problem.asked and not (sampled and problem.text):
        return None
    ask.check_params(params)
    if not problem.text:
        raise InvalidRequest(
            f"{ask.asked_as} looks for the ends of steps in text, and this request has none; load "
            "a tokenizer, or leave detokenization on.",
            ask.asked_as,
        )
    settings = merged(options, ask)
    if params.n > settings.width:
        raise InvalidRequest(
            f"n={params.n} answers are wanted of {settings.width} branches; raise width of "
            f"{ask.asked_as}.",
            ask.asked_as,
        )
    check_programs(settings.extract, settings.calls, problem, ask.asked_as)
    if ask.width is None and settings.width > problem.seats:
        settings = msgspec.structs.replace(settings, width=problem.seats)
    return settings


class Node(msgspec.Struct):
    """One branch: a step, from token `start` to `stop` of its text and from character `first` to
    `last`. `stop` and `last` are those of the text so far until it `rests`: until the step has
    ended, or the text. `parent` is the branch whose first `start` tokens it begins with."""

    number: int
    parent: int | None
    start: int
    first: int
    stop: int = 0
    last: int = 0
    rests: bool = False
    complete: bool = False
    text: str = ""


class Tree(SearchState):
    """The branches of one request so far. They advance a step at a time, all together: what is
    scored and which go on does not depend on which of them was faster. A subclass says how many
    children each has (`children`)."""

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(self, settings: TreeOptions, problem: Problem, scorer: Scorer) -> None:
        self.settings, self._scorer = settings, scorer
        self._wanted = problem.params.n
        self._prompt_tokens = len(problem.prompt)
        self.readings = Readings(settings.extract, settings.calls, problem.programs)
        self._over: str | None = None
        """Why no branch goes on any more, while answers are still to come."""
        self.nodes = {number: Node(number, None, 0, 0) for number in range(settings.width)}
        """Every branch that there was."""
        self._active = list(self.nodes)
        self._complete: list[int] = []
        self.found = Scores()
        self._rounds = 0
        self._held: list[int] = []
        """Tokens of state that the branches held after each round, the prompt's aside."""
        self._made = 0
        self._cancelled = 0
        """Branches whose step has ended and that have no children."""

    # -- what a subclass says ------------------------------------------------------------------

    def children(self, open_: Sequence[Node], room: int) -> dict[int, int]:
        """How many children each of the branches has whose step has ended and whose text has not;
        `room` at most, together. Branches that are left out end."""
        raise NotImplementedError

    # -- as a `SearchState` --------------------------------------------------------------------

    @property
    def begins(self) -> int:
        """See `SearchState`."""
        return self.settings.width

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return self.settings.width - len(self._complete)

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return [*self.found.waits, *self.readings.waits]

    def observer(self, branch: int) -> Observer | None:
        """See `SearchState`."""
        return self._scorer.observer(branch)

    def close(self) -> None:
        """See `SearchState`."""
        self.found.cancel()
        self.readings.cancel()

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        actions: list[Action | Finish] = []
        for number in self._active:
            node = self.nodes[number]
            if node.rests or not self._advance(node, branches[number]):
                continue
            if branches[number].finish_reason is None:
                actions.append(Hold(number))
        self.found.settle()
        self.readings.settle()
        if self._over is not None:
            return self._finish(branches, self._over)
        budget, made = self.settings.budget, self._made
        if budget is not None:
            made += sum(branches[n].length - self.nodes[n].start for n in self._active)
            if made >= budget:
                self._made = made
                return self._finish(branches, "budget")
        waits = (n for n in self._active if not self.nodes[n].rests or n not in self.found.known)
        if next(waits, None) is not None:
            return actions
        self._made += sum(branches[n].length - self.nodes[n].start for n in self._active)
        return [*actions, *self._go_on(branches)]

    # -- inside --------------------------------------------------------------------------------

    def _advance(self, node: Node, branch: Branch) -> bool:
        """Look how far a branch has come; whether it rests now."""
        settings, text = self.settings, branch.text
        if branch.length <= node.start:
            return False  # what its parent's last token brought beyond a border is no step yet
        found, ended = text.find(settings.border, node.first), branch.finish_reason is not None
        if found < 0 and not ended and branch.length - node.start < settings.step:
            return False
        node.stop, node.last = branch.length, len(text)
        if found >= 0:  # drafts may have brought more than the step, even the end of the text
            node.last = found + len(settings.border)
            node.stop = max(node.start + 1, branch.place(node.last))
        if node.stop - node.start > settings.step:
            node.stop = node.start + settings.step
            node.last = branch.characters(node.stop)
        node.complete = ended and node.stop >= branch.length
        node.rests, node.text = True, text[: node.last]
        if node.complete:
            self.readings.add(node.number, node.text)
        score = self._scorer.score(branch, node.start, node.stop, node.text)
        if branch.finish_reason == "error":
            self.found.fail(node.number, "the branch met an error")
        else:
            self.found.add(node.number, score)
        return True

    def _go_on(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """All branches rest, and have scores: what comes next."""
        self._rounds += 1
        complete = [n for n in self._active if self.nodes[n].complete]
        self._complete += complete
        open_ = [self.nodes[n] for n in self._active if not self.nodes[n].complete]
        room = self.settings.width - len(self._complete)
        if not open_ or room < 1:
            return self._finish(branches, "complete")
        counts = self.children(open_, room)
        # Those without children first: the others take their places.
        open_.sort(key=lambda node: (counts.get(node.number, 0) > 0, node.number))
        actions: list[Action | Finish] = []
        self._active = []
        for node in open_:
            numbers = range(len(self.nodes), len(self.nodes) + counts.get(node.number, 0))
            for number in numbers:
                self.nodes[number] = Node(number, node.number, node.stop, node.last)
                self._active.append(number)
            self._cancelled += not numbers
            actions.append(Split(node.number, list(numbers), node.stop))
        self._held.append(self.retained(self._active))
        if not self._active:
            return self._finish(branches, "complete")
        return actions

    def retained(self, numbers: Sequence[int]) -> int:
        """Tokens of state, the prompt's aside, of these branches and all that they begin with."""
        total, seen = 0, set[int]()
        for number in numbers:
            at: int | None = number
            while at is not None and at not in seen:
                seen.add(at)
                node = self.nodes[at]
                total += max(0, node.stop - node.start)
                at = node.parent
        return total

    def _finish(self, branches: Mapping[int, Branch], reason: str) -> list[Action | Finish]:
        if self.readings.waits:
            self._over = reason
            return [Hold(n) for n, branch in branches.items() if branch.finish_reason is None]
        scores, complete = self.found.known, self._complete
        answers = {n: self.readings.known[n] for n in complete}
        ranked = sorted(complete, key=lambda n: (-scores.get(n, 0.0), n))
        weights = weigh(answers, {n: scores.get(n, 0.0) for n in complete})
        if self.settings.choose == "vote":
            first = [next(n for n in ranked if answers[n] == each) for each in weights]
            ranked = [*first, *(n for n in ranked if n not in first)]
        if not ranked:  # none is complete: the longest says most
            ranked = sorted(branches, key=lambda n: (-branches[n].length, n))[:1]
            answers = {n: self.readings.read(branches[n].text) for n in ranked}
        choices = ranked[: self._wanted]
        left = [n for n in branches if n not in choices]
        report: dict[str, Any] = {
            "answer": answers.get(choices[0]),
            "answers": {answer: round(weight, 4) for answer, weight in weights.items()},
            "complete": len(complete),
            "rounds": self._rounds,
            "branches": len(self.nodes),
            "cancelled": self._cancelled + len(left),
            "tokens": branches[choices[0]].length,
            "tokens_made": self._made,
            "tokens_held": round(sum(self._held) / len(self._held)) if self._held else 0,
            "tokens_shared": (self.settings.width - 1) * self._prompt_tokens
            + sum(node.start for node in self.nodes.values()),
            "stopped": reason,
            **self.readings.told(complete),
        }
        failed = dict(sorted(self.found.failures.items()))
        told = (
            {**report, "failed": {str(n): why for n, why in failed.items()}} if failed else report
        )
        return [*map(Drop, left), Finish(choices, (), told, cut=reason == "budget")]
