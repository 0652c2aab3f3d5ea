"""Draft with trained inputs that ride along and guess what comes later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import NOTHING, Draft, Drafter, DraftStream, OwnModel, OwnRows, Seen, Wants
from ockham.draft.structures.levels import Grown, Guess, grow
from ockham.draft.structures.trained import TrainedOptions, read_trained
from ockham.model.checkpoint.draft_files import PromptTokens as Trained

_RANKS = 4
"""Of each prompt token, so many of the likeliest tokens."""
_MOST = 6
"""Prompt tokens beyond these are never right often enough."""
_SHARES = (0.35, 0.12, 0.06, 0.04)
_MARK_SHARE = 0.3
_LIKELY = Wants(candidates=_RANKS, newest=True)


@register("drafter", "prompt_tokens", exact=True, books=("prompt_tokens",), paper="65")
class PromptTokens(Drafter):
    """What trained inputs, behind the latest token, make of the tokens to come (Parallel Prompt
    Decoding).

    Behind a token stand a few inputs whose embeddings were trained while the model stayed as it
    is; each makes likely what comes one place further on. They are rows of the step that verifies
    the guesses of the step before, behind the sequence's last token and behind the guesses, so
    that wherever the verification ends there are new ones. How many, and behind which, is decided
    as for all drafted rows, by what they are worth: the dynamic sparse tree, sized to the machine.
    A guess's kind is its place and rank; a prompt token's, its place.
    """

    name: ClassVar[str] = "prompt_tokens"
    automatic: ClassVar[bool] = False
    observes: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = _SHARES * _MOST + (_MARK_SHARE,) * _MOST

    Options: ClassVar[type[msgspec.Struct]] = TrainedOptions

    def __init__(self, options: TrainedOptions) -> None:
        self._name = options.model
        self._count = 0

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        trained = read_trained(self._name, Trained, self.name, model)
        self.marks = np.ascontiguousarray(trained.embeddings[:_MOST])
        self._count = len(self.marks)

    def open(self, salt: str) -> GuessingStream:
        """See `Drafter`."""
        return GuessingStream(self._count)


class GuessingStream(DraftStream):
    """What the prompt tokens behind a sequence's latest row but for its token made likely."""

    def __init__(self, marks: int) -> None:
        self._marks = marks
        self._length = self._of = 0
        self._guesses: list[list[int]] = []

    def extend(self, tokens: Ints) -> None:
        self._length += len(tokens)

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return _LIKELY if (own.tokens < 0).any() else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        self._guesses, self._of = seen.candidates.tolist(), self._length

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """The guesses as a tree, and prompt tokens behind them and behind the latest token."""
        levels: list[list[Guess]] = []
        if self._length == self._of + 1:
            levels = [
                [(token, place * _RANKS + rank) for rank, token in enumerate(row) if token >= 0]
                for place, row in enumerate(self._guesses[:_MOST])
            ]
        guesses = grow(levels, accepted, worth, most)
        tokens, parents, kinds = self._marked(guesses, accepted, worth)
        return Draft(tokens, parents, kinds) if tokens else None

    def _marked(self, guesses: Grown, accepted: Sequence[float], worth: float) -> Grown:
        """The tree with the prompt tokens that are worth their rows."""
        tokens, parents, kinds = (list(each) for each in guesses)
        chances = [1.0]
        """Of the root, and then of each guess."""
        for parent, kind in zip(parents, kinds, strict=True):
            chances.append(chances[parent + 1] * accepted[kind])
        for guess in range(-1, len(guesses[0])):
            above, chance = guess, chances[guess + 1]
            for place in range(self._marks):
                kind = _RANKS * _MOST + place
                chance *= accepted[kind]
                if chance < worth:
                    break
                tokens.append(-1 - place)
                parents.append(above)
                kinds.append(kind)
                above = len(tokens) - 1
        return tokens, parents, kinds
