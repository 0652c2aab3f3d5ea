"""Drafting with a block that reads what is carried from row to row."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.seams import (
    Foreseen,
    HeadModel,
    LoadHead,
    OwnRows,
    Rows,
    Seen,
    Wants,
)
from ockham.draft.modelled.drafting import ContextOptions, ModelDrafting, Place
from ockham.draft.modelled.growing import MOST_COMPUTED, Growing
from ockham.draft.modelled.stream import ModelStream


class CarryingOptions(ContextOptions, frozen=True, forbid_unknown_fields=True):
    """The block sees the latest `draft_context` tokens of a text."""


class CarryingDrafter(ModelDrafting):
    """What drafters with a block of a published `form` have in common.

    A row of the block reads a token, and beside it what is carried from the row before: of what was
    said already that comes from the hidden states of the model's own rows, of what is being drafted
    from the block's. What is drafted and then said is therefore read again.
    """

    automatic: ClassVar[bool] = False
    observes: ClassVar[bool] = True
    reads: bool = True
    form: ClassVar[str]

    Options: ClassVar[type[msgspec.Struct]] = CarryingOptions

    def __init__(self, options: CarryingOptions) -> None:
        super().__init__(options.branches, options.rejection_threshold)
        self._name, self._context = options.model, options.draft_context

    def attach_head(self, load: LoadHead) -> None:
        """See `Drafter`."""
        self._block = self.model = load(self.form, self._name, self._context)

    def open(self, salt: str) -> ModelStream:
        """See `Drafter`. Streams share nothing but the steps that they are computed in."""
        return CarryingStream(self._block, self._context)

    def _branch(self, places: list[Place], foreseen: Foreseen, worth: float) -> None:
        assert foreseen.hidden is not None, "a block always gives what is carried on"
        for row, (each, number) in enumerate(places):
            each.carried[number] = foreseen.hidden[row]
        super()._branch(places, foreseen, worth)

    def _rows(self, each: Growing, numbers: list[int], above: list[list[int]]) -> Rows:
        beside = np.stack([each.carried[each.parents[number]] for number in numbers])
        return replace(super()._rows(each, numbers, above), beside=beside)


class CarryingStream(ModelStream):
    """One sequence as a block has read it, which sees `context` tokens.

    A token is read once the hidden states of the row before it are known. Rows whose state was
    reused, or came from elsewhere, are never seen: the block then reads what comes behind them, as
    if the text began there.
    """

    def __init__(self, model: HeadModel, context: int) -> None:
        super().__init__(model, recompute=True)
        self._block, self._context = model, context
        self._wants = Wants(hidden=tuple(model.layers), settled=True)
        self._length = 0
        """Tokens of the sequence."""
        self._states: dict[int, list[Floats]] = {}
        """Of rows of the model, by their places: the hidden states after each of the layers that
        the block reads, (hidden_size,)."""

    @property
    def position(self) -> int:
        return self._length

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return self._wants

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        places = own.places[seen.rows].tolist()[-self._context :]
        needed = self._length - len(self.unread) - 2
        if places[-1] < needed:
            return  # they are computed again
        first = len(seen.rows) - len(places)
        states = [seen.hidden[layer][first:].copy() for layer in self._block.layers]
        for row, place in enumerate(places):
            if place >= needed:
                self._states[place] = [of_layer[row] for of_layer in states]
        self._forget(places[-1] - self._context)

    def extend(self, tokens: Ints) -> None:
        self._length += len(tokens)
        self.unread += tokens.tolist()
        if len(self.unread) > 2 * self._context:
            del self.unread[: -self._context]
            self._begin()

    def settle(self) -> None:
        """Forget what was drafted, and what stands before a row that was never seen."""
        self._branches.clear()
        if not self.unread and self.committed:
            self.unread = [self._last]  # what comes after it is wanted again
            self.committed -= 1
        first = self._length - len(self.unread)
        known = len(self.unread)
        while known and first + known - 2 in self._states:
            known -= 1
        self._model.truncate(self.view, self.committed)
        if known or len(self.unread) > self._context:
            del self.unread[: max(known, len(self.unread) - self._context)]
            self._begin()
        self.fresh = self.fresh or len(self.unread) > MOST_COMPUTED
        self._block.slide(self.view)

    def rows(self, most: int) -> Rows:
        """See `ModelStream`."""
        first = self._length - len(self.unread)
        tokens = self.take(most)
        before = [self._states[place - 1] for place in range(first, first + len(tokens))]
        beside = self._block.carry([np.stack(of_layer) for of_layer in zip(*before, strict=True)])
        self._forget(first + len(tokens) - 2)
        return Rows(self.view, tokens, beside=beside)

    def close(self) -> None:
        """See `DraftStream`."""
        super().close()
        self._states.clear()

    @property
    def bytes(self) -> int:
        """See `DraftStream`."""
        held = sum(each.nbytes for states in self._states.values() for each in states)
        return super().bytes + held

    def _begin(self) -> None:
        """Read on as if the text began with what is unread."""
        self._model.release(self.view)
        self.view = self._model.open()
        self.committed, self.fresh = 0, True

    def _forget(self, before: int) -> None:
        """No row before this place is asked for any more."""
        for place in list(takewhile(lambda place: place < before, self._states)):
            del self._states[place]
