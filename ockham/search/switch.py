"""Two models write one text: the small one where it is sure of what comes next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import ClassVar

import msgspec

from ockham.core import asks
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import (
    Action,
    Branch,
    Companion,
    Continue,
    Finish,
    Problem,
    TokenScores,
    Write,
    Written,
)
from ockham.search.structures.pairs import Pair, check_one, companion_of, fits

_NAME = "switch"
MOST_TOKENS = 1024


class SwitchOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `model` is the companion that writes where it can; None: the only one there is. It gives way to
    the model when the entropy of its last `window` tokens is above `entropy` nats on average, and
    takes over again when that of the model's is not, after `stay` tokens of it at least.
    """

    model: str | None = None
    entropy: float = 0.5
    window: int = 5
    stay: int = 5

    def __post_init__(self) -> None:
        if not 0.0 <= self.entropy <= 100.0:
            raise ConfigError(f"entropy must lie in [0, 100], got {self.entropy}.")
        for name in ("window", "stay"):
            if not 1 <= getattr(self, name) <= MOST_TOKENS:
                raise ConfigError(
                    f"{name} must lie in [1, {MOST_TOKENS}], got {getattr(self, name)}."
                )


@register("search", _NAME, exact=False, books=(_NAME,), paper="188")
class Switch:
    """A companion writes; the model takes over where that is not sure of what comes next.

    Entropy Adaptive Decoding (Simonds 2025, arXiv:2502.06833, paper 188): the mean entropy of the
    last few tokens says who writes the next one, and nothing is verified. Each switch costs the
    rows that the other has missed, which are computed together. Averages begin anew with a switch.
    Where a switch comes follows from the text alone. `ockham techniques measure search/switch`
    measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("products",)
    name: ClassVar[str] = _NAME
    needs_companion: ClassVar[bool] = True
    Options: ClassVar[type[SwitchOptions]] = SwitchOptions
    Ask: ClassVar[type[asks.Ask]] = asks.ask_like(SwitchOptions, _NAME, check_one(_NAME))

    def __init__(self, options: SwitchOptions) -> None:
        self._options = options

    def begin(self, ask: asks.Ask, problem: Problem) -> Alternating | None:
        """See `Search`."""
        if not problem.asked and not fits(problem):
            return None
        ask.check_params(problem.params)
        settings = asks.merged(self._options, ask)
        who, companion = companion_of(settings.model, problem, _NAME)
        return Alternating(settings, who, companion)


class Alternating(Pair):
    """The text of one request, and whose turn it is."""

    watches: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(self, settings: SwitchOptions, who: str, companion: Companion) -> None:
        super().__init__()
        self._settings, self._who = settings, who
        self._writer = companion.open()
        self._coming: Future[Written] | None = None
        self._begun = False
        self._alone = False
        """Whether the companion writes no more: it failed, or has no room for more."""
        self._from = 0
        """After how many tokens the model's part began."""
        self._looked = 0
        """Up to which token the model's part was looked at."""
        self._own = 0
        """Tokens of the companion."""
        self._switches = 0

    def go_on(self, main: Branch) -> list[Action | Finish]:
        """See `Pair`."""
        if not self._begun:
            self._begun = True
            return self._hand_over(())
        if self._coming is None:
            return self._models_turn(main)
        if not self._coming.done():
            return []
        written, self._coming = self.taken(self._coming), None
        tokens = [] if written is None else list(written.tokens)
        self._own += len(tokens)
        self._alone = written is None or written.finish_reason is not None
        self._switches += not self._alone
        self._from = self._looked = main.length + len(tokens)
        return [*([Write(main.number, tokens)] if tokens else []), Continue(main.number)]

    # -- inside --------------------------------------------------------------------------------

    def _models_turn(self, main: Branch) -> list[Action | Finish]:
        """Look whether the model has become sure enough for its companion. A step may bring several
        tokens, of which the last may end the text."""
        ended = main.finish_reason is not None
        first = max(self._looked + 1, self._from + self._settings.stay)
        for end in range(first, main.length + (not ended)):
            if self._alone:
                break
            if self._mean(main.scores, self._from, end) <= self._settings.entropy:
                self._switches += 1
                tokens = main.tokens[self._from : end]
                return [*self.hold_at(main, end), *self._hand_over(tokens)]
        self._looked = main.length
        return [self._finish(main)] if ended else []

    def _hand_over(self, tokens: Sequence[int]) -> list[Action | Finish]:
        """Let the companion write, after what the model has written."""
        self._coming = self._writer.go_on(tokens, until=self._unsure)
        self.await_(self._coming)
        return []

    def _unsure(self, branch: Branch, start: int) -> bool:
        """Whether the companion is to give way to the model."""
        return self._mean(branch.scores, start, branch.length) > self._settings.entropy

    def _mean(self, scores: TokenScores, start: int, end: int) -> float:
        """The mean entropy of the last tokens before `end`, those from `start` on."""
        window = scores.entropies[max(start, end - self._settings.window) : end]
        known = [each for each in window if not math.isnan(each)]
        return sum(known) / len(known) if known else 0.0

    def _finish(self, main: Branch) -> Finish:
        own = min(self._own, main.length)
        share = own / main.length if main.length else 0.0
        report = self.told(
            companion=self._who,
            tokens=main.length,
            tokens_of_companion=own,
            share_of_companion=round(share, 4),
            switches=self._switches,
        )
        return Finish([main.number], [(0, own)], report)
