"""Drafting with a part of the model itself, for all sequences together."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ockham.core.arrays import Floats, Ints
from ockham.core.cost import Skips
from ockham.core.seams import Draft, Drafter, DraftStream, OwnModel, Wish
from ockham.draft.structures.certainty import SHARES, kind_of, ranked

_BELIEVED = 0.1
"""How much of the time that a drafted token takes is believed at once."""
_FORGOTTEN = 0.01
"""How much of it is forgotten each time that it is too long for a token to be drafted: a time that
was taken beside something else is not held against a drafter for ever."""
_FURTHEST = 2.0
"""A drafted token that took more than so many steps of the whole model was held up."""
_CHOICES = 2


class PartDrafter(Drafter):
    """Drafts token after token with the model without some of its sublayers, or with a part of its
    neurons (self-speculation).

    The state of all that was read and said is there already, in the sequence's own pages; a drafted
    token adds its own, in those sublayers that run, which verification writes again, to the same
    bits. The second choice is a leaf beside the first. A token's kind is the probability that it is
    given.
    """

    automatic: ClassVar[bool] = False
    joint: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = SHARES + SHARES

    _token_s = 0.0

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        self._model = model

    @abstractmethod
    def skips(self, stream: LastToken) -> Skips:
        """What is left out where a stream's tokens are drafted."""
        ...

    def leading(self) -> Sequence[int] | None:
        """How many neurons of each feed-forward run, the first ones; None for all."""
        return None

    def leave(self, x: Floats) -> Floats:
        """What the head reads of rows x of the residual stream, (rows, hidden_size)."""
        return x

    def begin(self, streams: Sequence[LastToken], wishes: Sequence[Wish]) -> None:
        """Tokens are about to be drafted for these streams."""
        return

    def open(self, salt: str) -> LastToken:
        """See `Drafter`."""
        return LastToken()

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """See `Drafter`."""
        making = [
            _Making(stream, wish, stream.token, wish.view.tokens)
            for stream, wish in zip(streams, wishes, strict=True)
            if isinstance(stream, LastToken)
        ]
        active = [each for each in making if each.wish.most > 0]
        if active and not self._pays(active, token_s):
            self._token_s *= 1.0 - _FORGOTTEN
        elif active:
            self.begin([each.stream for each in active], [each.wish for each in active])
        while active and self._pays(active, token_s):
            active = [e for e in active if self._model.reserve(e.wish.view, e.cell + 1)]
            if not active:
                break
            began = time.perf_counter()
            likely = self._model.partly(
                [(each.wish.view, each.cell, each.token) for each in active],
                [self.skips(each.stream) for each in active],
                _CHOICES,
                self.leave,
                self.leading(),
            )
            found = ranked(
                self._model,
                likely,
                [each.wish.noise for each in active],
                [each.cell + 1 for each in active],
            )
            for each, choices in zip(active, found, strict=True):
                each.add(choices, worth)
            active = [each for each in active if each.goes_on]
            self.learn(time.perf_counter() - began, len(found) * token_s)
        return [each.draft() for each in making]

    def learn(self, took_s: float, step_s: float) -> None:
        """A token was drafted for each of some sequences, for which a step of the whole model takes
        `step_s`. What took much longer was held up by something else."""
        said_s = min(took_s, _FURTHEST * max(self._token_s, step_s))
        self._token_s += (_BELIEVED if self._token_s else 1.0) * (said_s - self._token_s)

    def _pays(self, active: Sequence[_Making], token_s: float) -> bool:
        return sum(each.chance for each in active) * token_s > self._token_s


class LastToken(DraftStream):
    """The latest token of a sequence; all else is in its state."""

    token = -1

    def extend(self, tokens: Ints) -> None:
        self.token = int(tokens[-1])

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """The model drafts for all sequences together (`PartDrafter.propose_all`)."""
        raise TypeError("the model proposes for all sequences together.")


@dataclass(slots=True)
class _Making:
    """A draft being made: a chain whose last token is `token`, which has the cell `cell`, with
    leaves beside it. `chance` is that of the chain."""

    stream: LastToken
    wish: Wish
    token: int
    cell: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    last: int = -1
    chance: float = 1.0
    goes_on: bool = True

    def add(self, choices: list[tuple[int, float]], worth: float) -> None:
        """What may follow, and the probability that each is given."""
        above, chance = self.last, self.chance
        self.goes_on = False
        for rank, (token, share) in enumerate(choices):
            kind = rank * len(SHARES) + kind_of(share)
            own = chance * self.wish.accepted[kind]
            if own < worth or len(self.tokens) == self.wish.most:
                continue
            self.tokens.append(token)
            self.parents.append(above)
            self.kinds.append(kind)
            if rank == 0:
                self.last, self.token, self.chance = len(self.tokens) - 1, token, own
                self.cell += 1
                self.goes_on = True
        self.goes_on = self.goes_on and len(self.tokens) < self.wish.most

    def draft(self) -> Draft | None:
        return Draft(self.tokens, self.parents, self.kinds) if self.tokens else None
