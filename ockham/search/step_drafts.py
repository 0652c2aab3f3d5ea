"""A small model writes the steps of a text; the model judges each, and writes those that fail."""

from __future__ import annotations

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
    Split,
    Write,
    Written,
)
from ockham.search.structures.pairs import (
    MOST_TEXT,
    Pair,
    check_one,
    companion_of,
    fits,
    least_probability,
    mean_probability,
)

_NAME = "step_drafts"
MEAN, LEAST = "mean", "least"
_MEASURES = {MEAN: mean_probability, LEAST: least_probability}
MOST_TOKENS = 4096


class StepDraftsOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `model` is the companion that writes steps; None: the only one there is. A step ends with
    `border`, or after `step` tokens. It is accepted if the least of the probabilities that the
    model gives its tokens ("least"), or their geometric mean ("mean", as `by` says), is at least
    `accept`. The model writes the `first` steps itself.
    """

    model: str | None = None
    border: str = "\n"
    step: int = 128
    by: str = LEAST
    accept: float = 0.3
    first: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.border) <= MOST_TEXT:
            raise ConfigError(
                f"border must have 1 to {MOST_TEXT} characters, got {len(self.border)}."
            )
        if not 1 <= self.step <= MOST_TOKENS:
            raise ConfigError(f"step must lie in [1, {MOST_TOKENS}], got {self.step}.")
        if self.by not in _MEASURES:
            raise ConfigError(f"by must be {MEAN} or {LEAST}, got {shown(self.by)}.")
        if not 0.0 < self.accept <= 1.0:
            raise ConfigError(f"accept must be above 0 and at most 1, got {self.accept}.")
        if not 0 <= self.first <= MOST_TOKENS:
            raise ConfigError(f"first must lie in [0, {MOST_TOKENS}], got {self.first}.")


@register("search", _NAME, exact=False, books=(_NAME,), paper="323")
class StepDrafts:
    """A companion writes whole steps; the model reads each, keeps it or writes it anew.

    SpecReason (Pan et al. 2025, arXiv:2504.07891, paper 323): a step need not say what the model
    would have said, as long as it thinks it good. The paper asks the model for a mark; here it is
    the probability that the model gives the step, which one pass over the step's rows tells, and
    which small models know as well. Drafts of tokens go on within the model's own steps.
    `ockham techniques measure search/step_drafts` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("products",)
    name: ClassVar[str] = _NAME
    needs_companion: ClassVar[bool] = True
    Options: ClassVar[type[StepDraftsOptions]] = StepDraftsOptions
    Ask: ClassVar[type[asks.Ask]] = asks.ask_like(StepDraftsOptions, _NAME, check_one(_NAME))

    def __init__(self, options: StepDraftsOptions) -> None:
        self._options = options

    def begin(self, ask: asks.Ask, problem: Problem) -> Judged | None:
        """See `Search`."""
        if not problem.asked and not (fits(problem) and problem.text):
            return None
        ask.check_params(problem.params)
        if not problem.text:
            raise InvalidRequest(
                f"{_NAME} finds steps in text, and this request has none; load a tokenizer, or "
                "leave detokenization on.",
                _NAME,
            )
        settings = asks.merged(self._options, ask)
        who, companion = companion_of(settings.model, problem, _NAME)
        return Judged(settings, who, companion, problem.stops)


class Judged(Pair):
    """The text of one request, step by step. What the model draws after a step that it keeps begins
    the next one."""

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(
        self, settings: StepDraftsOptions, who: str, companion: Companion, stops: frozenset[int]
    ) -> None:
        super().__init__()
        self._settings, self._who, self._stops = settings, who, stops
        self._companion, self._writer = companion, companion.open()
        self._known = 0
        """How many tokens of the text the companion has."""
        self._start = 0
        """Where the step begins that is written, or judged."""
        self._coming: Future[Written] | None = None
        self._draft: range | None = None
        """The tokens that are judged."""
        self._writes = False
        """Whether the model writes the step itself."""
        self._accepted = self._rejected = self._own = 0
        self._made = self._kept = 0
        """Tokens of the companion: all, and those that stayed."""

    def go_on(self, main: Branch) -> list[Action | Finish]:
        """See `Pair`."""
        if self._coming is not None:
            return self._judge(main, self._coming) if self._coming.done() else []
        if self._draft is not None:
            return self._verdict(main, self._draft)
        if self._writes:
            return self._models_step(main)
        if self._settings.first:
            return self._write(main)
        return self._ask(main, 0)

    # -- inside --------------------------------------------------------------------------------

    def _ask(self, main: Branch, end: int) -> list[Action | Finish]:
        """Let the companion write the step after the first `end` tokens."""
        self._writes, self._start = False, end
        self._coming = self._writer.go_on(
            main.tokens[self._known : end], self._settings.step, self._ends, self._known
        )
        self.await_(self._coming)
        return []

    def _ends(self, branch: Branch, start: int) -> bool:
        """Whether the companion has written a step."""
        return self._end_of_step(branch, start) is not None

    def _judge(self, main: Branch, coming: Future[Written]) -> list[Action | Finish]:
        """Have the model read what the companion wrote."""
        written, self._coming = self.taken(coming), None
        tokens = [] if written is None else list(written.tokens)
        self._made += len(tokens)
        ended = written is None or written.finish_reason is not None
        if ended:  # whether it is the end is the model's to say
            self._writer, self._known = self._companion.open(), 0
            tokens = tokens[:-1] if tokens and tokens[-1] in self._stops else tokens
        if not tokens:
            return [*self._write(main)]
        self._draft = range(self._start, self._start + len(tokens))
        if not ended:
            self._known = self._draft.stop
        return [Write(main.number, tokens, scored=True), Continue(main.number)]

    def _verdict(self, main: Branch, draft: range) -> list[Action | Finish]:
        """Keep a step that the model has read, or have it written anew."""
        if main.length <= draft.stop and main.finish_reason is None:
            return []
        measure = _MEASURES[self._settings.by]
        whole = main.length > draft.stop
        score = measure(main.scores, draft.start, draft.stop) if whole else 1.0
        self._draft = None
        if score < self._settings.accept:
            self._rejected += 1
            self._known = min(self._known, draft.start)
            self.main += 1
            self._writes = True
            return [Split(main.number, [self.main], draft.start)]
        self._accepted += 1
        self._kept += len(draft)
        end = draft.stop + 1
        if main.finish_reason is not None and main.length <= end:
            return [self._finish(main)]
        return [*self.hold_at(main, end), *self._ask(main, end)]

    def _write(self, main: Branch) -> list[Action | Finish]:
        """Let the model write the step."""
        self._writes = True
        return [Continue(main.number)]

    def _models_step(self, main: Branch) -> list[Action | Finish]:
        """The model writes: look whether its step has ended."""
        end = self._end_of_step(main, self._start)
        if end is None and main.length - self._start >= self._settings.step:
            end = self._start + self._settings.step
        if main.finish_reason is not None and (end is None or end >= main.length):
            self._own += 1
            return [self._finish(main)]
        if end is None or self.failure is not None:
            return []
        self._own += 1
        if self._own < self._settings.first:
            self._start = end
            return []
        return [*self.hold_at(main, end), *self._ask(main, end)]

    def _end_of_step(self, branch: Branch, start: int) -> int | None:
        """After how many tokens the step ends that begins after `start`; None if it has not."""
        before = branch.characters(start) if start else 0
        text = branch.text[before:]
        found = text.find(self._settings.border, len(text) - len(text.lstrip()))
        if found < 0:
            return None
        wanted = before + found + len(self._settings.border)
        return next(
            (end for end in range(start + 1, branch.length) if branch.characters(end) >= wanted),
            branch.length,
        )

    def _finish(self, main: Branch) -> Finish:
        report = self.told(
            companion=self._who,
            tokens=main.length,
            tokens_of_companion=self._made,
            tokens_kept=self._kept,
            steps_accepted=self._accepted,
            steps_rejected=self._rejected,
            steps_of_model=self._own,
        )
        return Finish([main.number], [(0, self._kept)], report)
