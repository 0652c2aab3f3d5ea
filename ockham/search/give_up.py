"""A completion that ends as soon as nobody is likely to want it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Action, Branch, End, Finish, Problem, SearchState

MOST_EXAMPLES = 4096
MOST_CHOICES = 64
MOST_TOKENS = 1024


class GiveUpOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A completion ends when the mean log probability of its tokens falls below `threshold`, after
    `after` tokens at the earliest."""

    threshold: float = -0.35
    after: int = 2

    def __post_init__(self) -> None:
        wrong = _wrong(self.threshold, self.after)
        if wrong is not None:
            raise ConfigError(wrong)


class GiveUpAsk(Ask, kw_only=True, frozen=True):
    """`threshold` and `after` as in `GiveUpOptions`, which hold where the ask does not say.

    With `examples` the threshold is learned: each is the `lowest` mean that the report of an
    earlier completion has, and whether that was accepted. The threshold is the highest by which no
    more than the share `lose` of the accepted ones would have been given up. Without a threshold
    (`watch`) none is given up, and the reports are those to learn from.
    """

    threshold: float | None = None
    after: int | None = None
    examples: list[tuple[float, bool]] = []
    lose: float = 0.05
    watch: bool = False

    def __post_init__(self) -> None:
        wrong = _wrong(self.threshold, self.after)
        if wrong is None and not 0.0 <= self.lose < 1.0:
            wrong = f"lose is a share of the accepted completions below 1; got {shown(self.lose)}."
        if wrong is None and self.examples:
            wrong = _wrong_examples(self.examples)
        if wrong is None and (self.threshold is not None) + bool(self.examples) + self.watch > 1:
            wrong = "threshold, examples and watch exclude each other; leave two of them out."
        if wrong is not None:
            raise InvalidRequest(f"give_up: {wrong}", "give_up")

    def check_params(self, params: SamplingParams) -> None:
        if not 1 <= params.n <= MOST_CHOICES or params.max_tokens == 0:
            raise InvalidRequest(
                f"give_up ends completions early: it needs max_tokens above 0 and n of at most "
                f"{MOST_CHOICES}, got max_tokens={params.max_tokens} and n={params.n}.",
                "give_up",
            )

    def sequences(self, choices: int) -> int:
        return choices


@register("search", "give_up", exact=False, books=(), paper="83")
class GiveUp:
    """A completion ends as soon as the model's mean confidence in it falls below a threshold.

    Completions that are shown while somebody types are mostly rejected, and the model is less sure
    of those (Sun et al. 2024, arXiv:2401.09964, who also leave layers out). The mean is that of the
    log probabilities of all tokens so far; it follows from the completion alone, so that the same
    request ends in the same place whatever runs beside it. `ockham techniques measure give_up` says
    what is spared, and what is lost.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "give_up"
    Options: ClassVar[type[GiveUpOptions]] = GiveUpOptions
    Ask: ClassVar[type[GiveUpAsk]] = GiveUpAsk

    def __init__(self, options: GiveUpOptions) -> None:
        self._options = options

    def begin(self, ask: GiveUpAsk, problem: Problem) -> Completions | None:
        """See `Search`."""
        params = problem.params
        if not problem.asked and (params.max_tokens == 0 or params.n > problem.seats):
            return None
        ask.check_params(params)
        threshold = self._options.threshold if ask.threshold is None else ask.threshold
        if ask.watch:
            threshold = -math.inf
        elif ask.examples:
            threshold = learned(ask.examples, ask.lose)
        after = self._options.after if ask.after is None else ask.after
        return Completions(params.n, threshold, after)


def learned(examples: Sequence[tuple[float, bool]], lose: float) -> float:
    """The highest threshold below which lies no more than the share `lose` of the accepted
    examples."""
    accepted = sorted(lowest for lowest, wanted in examples if wanted)
    return accepted[int(lose * len(accepted))]


class Completions(SearchState):
    """The completions of one request, and how sure the model has been of each at its worst."""

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(self, count: int, threshold: float, after: int) -> None:
        self._count, self._threshold, self._after = count, threshold, after
        self._seen = [0] * count
        """Tokens of each that were looked at."""
        self._sums = [0.0] * count
        self._lowest: list[float | None] = [None] * count
        self._ended: list[int | None] = [None] * count
        """After how many tokens each was given up."""
        self._room = [0] * count
        """How many tokens more each could have had then."""

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return self._count

    @property
    def begins(self) -> int:
        """See `SearchState`."""
        return self._count

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        actions: list[Action | Finish] = []
        for number, branch in branches.items():
            if self._ended[number] is None:
                self._look(number, branch)
                if self._ended[number] is not None and branch.finish_reason is None:
                    actions.append(End(number))
        running = [b for b in branches.values() if b.finish_reason is None]
        if len(actions) < len(running):
            return actions
        return [*actions, Finish(self._choices(branches), (), self._report(branches))]

    # -- inside --------------------------------------------------------------------------------

    def _look(self, number: int, branch: Branch) -> None:
        """Look at the tokens that have come, one by one: a step may bring several."""
        logprobs = branch.scores.logprobs
        for place in range(self._seen[number], len(logprobs)):
            self._sums[number] += logprobs[place]
            self._seen[number] = place + 1
            if place + 1 < self._after:
                continue
            mean, lowest = self._sums[number] / (place + 1), self._lowest[number]
            self._lowest[number] = mean if lowest is None else min(mean, lowest)
            whole = branch.finish_reason is not None and place + 1 == branch.length
            if mean < self._threshold and not whole:
                self._ended[number] = place + 1
                self._room[number] = branch.room + branch.length - place - 1
                return

    def _choices(self, branches: Mapping[int, Branch]) -> list[int | Sequence[int]]:
        """What each has said, up to where it was given up."""
        found: list[int | Sequence[int]] = []
        for number in range(self._count):
            branch, end = branches[number], self._ended[number]
            cut = end is not None and end < branch.length
            found.append(list(branch.tokens[:end]) if cut else number)
        return found

    def _report(self, branches: Mapping[int, Branch]) -> dict[str, Any]:
        lengths = [
            branches[number].length if end is None else end
            for number, end in enumerate(self._ended)
        ]
        return {
            "threshold": None if math.isinf(self._threshold) else self._threshold,
            "given_up": [end is not None for end in self._ended],
            "lowest": [None if each is None else round(each, 4) for each in self._lowest],
            "tokens": lengths,
            "tokens_spared_at_most": sum(self._room),
        }


def _wrong(threshold: float | None, after: int | None) -> str | None:
    """What of the settings cannot be; None if they can."""
    if threshold is not None and not -1000.0 <= threshold <= 0.0:
        return f"threshold is a mean log probability from -1000 to 0; got {shown(threshold)}."
    if after is not None and not 1 <= after <= MOST_TOKENS:
        return f"after is a number of tokens from 1 to {MOST_TOKENS}; got {shown(after)}."
    return None


def _wrong_examples(examples: Sequence[tuple[float, bool]]) -> str | None:
    if len(examples) > MOST_EXAMPLES:
        return f"there are {len(examples)} examples; give {MOST_EXAMPLES} at most."
    if not all(-math.inf < lowest <= 0.0 for lowest, _ in examples):
        return "examples are pairs of a mean log probability, 0 at most, and true or false."
    if not any(wanted for _, wanted in examples):
        return "no example was accepted, so that every threshold would do; give one that was."
    return None
