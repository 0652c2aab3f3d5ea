"""What searches have in common in which another model, a companion, writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Companion,
    Finish,
    Hold,
    Problem,
    SearchState,
    Split,
    TokenScores,
    Written,
)
from ockham.search.structures.scorers import known

MAIN = 0
"""The branch of the model itself."""
MOST_TEXT = 1000
"""Characters of a border, and of what is written."""


def check_one(name: str) -> dict[str, Callable[..., Any]]:
    """The `check_params` of a search `name` for one text that two models write."""

    def check_params(self: object, params: SamplingParams) -> None:
        if params.n != 1 or params.max_tokens == 0:
            raise InvalidRequest(
                f"{name} gives one text: it needs n=1 and max_tokens above 0, got n={params.n} and "
                f"max_tokens={params.max_tokens}.",
                name,
            )
        for field in ("structured_outputs", "logprobs", "prompt_logprobs"):
            if getattr(params, field) is not None:
                raise InvalidRequest(
                    f"{name} has two models write one text, which {field} does not allow; leave "
                    f"one of the two out.",
                    name,
                )

    return {"check_params": check_params}


def fits(problem: Problem) -> bool:
    """Whether a search that the engine's setting names makes sense for a request."""
    params = problem.params
    wants = (params.structured_outputs, params.logprobs, params.prompt_logprobs)
    return params.n == 1 and params.max_tokens != 0 and wants == (None, None, None)


def companion_of(model: str | None, problem: Problem, asked_as: str) -> tuple[str, Companion]:
    """The companion of this name, or the only one. Raises InvalidRequest if there is none, or the
    prompt is too long for it."""
    there = problem.companions
    if model is None and len(there) == 1:
        (model,) = there
    if model is None or model not in there:
        found = ", ".join(there) or "none; name one by --companions NAME=MODEL"
        said = "names no model" if model is None else f"has no companion {shown(model)}"
        raise InvalidRequest(f"{asked_as} {said}; there is: {found}.", asked_as)
    companion = there[model]
    if len(problem.prompt) >= companion.longest:
        raise InvalidRequest(
            f"{asked_as}: the prompt has {len(problem.prompt)} tokens, and the companion {model} "
            f"reads {companion.longest}, one of which it must write; send a shorter one, or name "
            "another companion.",
            asked_as,
        )
    return model, companion


def mean_probability(scores: TokenScores, start: int = 0, stop: int | None = None) -> float:
    """The geometric mean of the probabilities of some tokens; 0 of none."""
    logprobs = scores.logprobs[start:stop]
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def least_probability(scores: TokenScores, start: int = 0, stop: int | None = None) -> float:
    """The probability of the least likely of some tokens; 0 of none."""
    logprobs = scores.logprobs[start:stop]
    return math.exp(min(logprobs)) if logprobs else 0.0


class Pair(SearchState):
    """A text of which a companion and the model write parts. The model's is held until the search
    goes on with it. A subclass says what is to be done (`go_on`)."""

    holds: ClassVar[bool] = True

    def __init__(self) -> None:
        self.main = MAIN
        """The number of the branch that is the model's text now."""
        self._awaited: list[Future[Any]] = [known(0.0)]
        self.failure: str | None = None
        """What kept the companion from writing."""

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return 1

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return self._awaited

    def await_(self, *futures: Future[Any]) -> None:
        """Be asked again when one of these is done."""
        self._awaited = list(futures)

    def taken(self, future: Future[Written]) -> Written | None:
        """What a companion wrote; None, and a reason is noted, if it could not."""
        error = future.exception()
        if error is None:
            return future.result()
        self.failure = str(error)
        return None

    def go_on(self, main: Branch) -> list[Action | Finish]:
        """What comes next, when something that was awaited is there, or the model has written."""
        raise NotImplementedError

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        self._awaited = [each for each in self._awaited if not each.done()]
        return self.go_on(branches[self.main])

    def hold_at(self, main: Branch, tokens: int) -> list[Action]:
        """Let the model's text end after so many tokens for now: a step that verified drafts may
        have brought more. What goes on has noise of its own, whether it has or not."""
        self.main += 1
        return [Split(main.number, [self.main], tokens), Hold(self.main)]

    def told(self, **more: Any) -> dict[str, Any]:
        """A report, and what went wrong if anything did."""
        return more if self.failure is None else {**more, "failed": self.failure}
