"""Draft for long texts from a short part of them."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import LoadSmall, SecondModel
from ockham.core.speculative import MOST_TOKENS
from ockham.draft.modelled.drafting import ContextOptions, ModelDrafting
from ockham.draft.modelled.stream import ModelStream
from ockham.draft.structures.passages import PASSAGE, Passages

FIRST, LATEST = 8, 4
"""Tokens that a text begins with are always read, and of what is read every so many-th is one of
the latest."""
_QUERY = 48
"""Of the latest tokens, those that passages are searched for by."""
_AGAIN = 64
"""Tokens after which passages are searched for anew."""


class RapidOptions(ContextOptions, frozen=True, forbid_unknown_fields=True):
    """So many tokens of a text are read, `draft_context`. Without a `model` the target drafts."""


@register("drafter", "rapid", exact=True, books=("rapid",), paper="174")
class Rapid(ModelDrafting):
    """What a model says that reads only the parts of a long text that matter now.

    It reads how the text begins, its latest tokens, and between them the passages that share most
    with those, `draft_context` tokens together, so that a long context costs the drafter no more
    than a short one (RAPID, paper 174). With a `model` that one drafts, without one the target
    itself does, from the same weights, with a small state of its own. Of the paper only the exact
    form is here: what the drafter knows moves no token of the target.
    """

    name: ClassVar[str] = "rapid"
    automatic: ClassVar[bool] = False

    Options: ClassVar[type[msgspec.Struct]] = RapidOptions

    def __init__(self, options: RapidOptions) -> None:
        super().__init__(options.branches, options.rejection_threshold)
        self._name, self._context = options.model, options.draft_context

    def attach(self, load: LoadSmall) -> None:
        """See `Drafter`."""
        self.model = load(self._name, self._context + 2 * _AGAIN + MOST_TOKENS)

    def open(self, salt: str) -> RetrievingStream:
        """See `Drafter`."""
        return RetrievingStream(self.model, self._context)


class RetrievingStream(ModelStream):
    """A sequence of which the model reads a part: `context` tokens and what is said after them."""

    def __init__(self, model: SecondModel, context: int) -> None:
        super().__init__(model)
        self._context, self._latest = context, context // LATEST
        self._tokens: list[int] = []
        self._passages = Passages()
        self._chosen: list[int] | None = None
        """The passages that it reads; None before there are any, [] of a text that it reads whole.
        """
        self._until = 0
        """The length of the text at which passages are searched for anew."""

    @property
    def position(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Ints) -> None:
        self._tokens += tokens.tolist()
        if self._chosen is not None:
            super().extend(tokens)

    def settle(self) -> None:
        """Choose passages if it is time, and read anew if they are others than those before."""
        if len(self._tokens) >= self._until:
            self._until = len(self._tokens) + _AGAIN
            chosen = self._choose()
            full = self.committed + len(self.unread) > self._context + _AGAIN
            if self._chosen is None or full or not set(chosen) <= set(self._chosen):
                self._chosen = chosen
                self._begin()
                return
        super().settle()

    def _choose(self) -> list[int]:
        if len(self._tokens) <= self._context:
            return []
        self._passages.grow(self._tokens)
        room = (self._context - FIRST - self._latest) // PASSAGE
        upto = (len(self._tokens) - self._latest) // PASSAGE
        return self._passages.best(self._tokens[-_QUERY:], upto, room)

    def _begin(self) -> None:
        """Forget what was read, and read the chosen parts."""
        tokens = self._tokens
        if len(tokens) > self._context:
            assert self._chosen is not None, "chosen before"
            parts = [range(max(FIRST, p * PASSAGE), (p + 1) * PASSAGE) for p in self._chosen]
            between = [
                tokens[at] for part in parts for at in part if at < len(tokens) - self._latest
            ]
            tokens = [*tokens[:FIRST], *between, *tokens[-self._latest :]]
        self.restart(tokens)
