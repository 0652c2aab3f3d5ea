"""Draft with the first layers of the model itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream, OwnModel, Wish
from ockham.draft.structures.certainty import SHARES, kind_of, ranked
from ockham.draft.structures.trained import TrainedOptions, read_trained, silu
from ockham.model.checkpoint.draft_files import EarlyExit as Exit

_BELIEVED = 0.1
"""How much of the time that a drafted token takes is believed at once."""
_CHOICES = 2


class EarlyExitOptions(TrainedOptions, frozen=True, forbid_unknown_fields=True):
    """Instead of a `model`, `layers` says after how many of them the model is left."""

    layers: int | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 1:
            raise ConfigError(
                "layers is at least 1: after so many layers the model is left; got layers = "
                f"{self.layers}."
            )


@register("drafter", "early_exit", exact=True, books=("early_exit",), paper="128")
class EarlyExit(Drafter):
    """What the model would say if it ended after its first layers (self-speculation).

    The first layers' state of all that was read and said is there already, in the sequence's own
    pages; a drafted token adds its own, which verification writes again, to the same bits. With a
    trained drafter (`model`) a small correction stands between the last of these layers and the
    output head, as M2R2's accelerated residual foretells the later layers' states; without one
    (`layers`) the head reads what the layers give. The second choice is a leaf beside the first.
    A token's kind is the probability that it is given.
    """

    name: ClassVar[str] = "early_exit"
    automatic: ClassVar[bool] = False
    joint: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = SHARES + SHARES

    Options: ClassVar[type[msgspec.Struct]] = EarlyExitOptions

    def __init__(self, options: EarlyExitOptions) -> None:
        self._name, self._layers = options.model, options.layers
        if (self._name is None) == (self._layers is None):
            raise ConfigError(
                'the method "early_exit" needs either a "model", a directory that `ockham draft '
                'train --method early_exit` wrote, or "layers", after how many the model is left.'
            )
        self._token_s = 0.0

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        self._model = model
        self._exit: Exit | None = None
        if self._name is not None:
            self._exit = read_trained(self._name, Exit, self.name, model)
            self._layers = self._exit.layers
        assert self._layers is not None, "one of the two is given"
        if self._layers >= model.layers:
            raise ConfigError(
                f"the model has {model.layers} layers, so that it can be left after 1 to "
                f"{model.layers - 1} of them, got layers = {self._layers}."
            )
        self._count = self._layers

    def open(self, salt: str) -> LastToken:
        """See `Drafter`."""
        return LastToken()

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """See `Drafter`."""
        making = [
            _Making(wish, stream.token, wish.view.tokens)
            for stream, wish in zip(streams, wishes, strict=True)
            if isinstance(stream, LastToken)
        ]
        active = [each for each in making if each.wish.most > 0]
        while active and sum(each.chance for each in active) * token_s > self._token_s:
            active = [e for e in active if self._model.reserve(e.wish.view, e.cell + 1)]
            if not active:
                break
            began = time.perf_counter()
            likely = self._model.early(
                [(each.wish.view, each.cell, each.token) for each in active],
                self._count,
                self._leave,
                _CHOICES,
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
            took_s = time.perf_counter() - began
            self._token_s += (_BELIEVED if self._token_s else 1.0) * (took_s - self._token_s)
        return [each.draft() for each in making]

    def _leave(self, x: Floats) -> Floats:
        if self._exit is None:
            return x
        left: Floats = x + silu(x @ self._exit.weight.T + self._exit.bias)
        return left


class LastToken(DraftStream):
    """The latest token of a sequence; all else is in its state."""

    token = -1

    def extend(self, tokens: Ints) -> None:
        self.token = int(tokens[-1])

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """The layers draft for all sequences together (`EarlyExit.propose_all`)."""
        raise TypeError("the layers propose for all sequences together.")


@dataclass(slots=True)
class _Making:
    """A draft being made: a chain whose last token is `token`, which has the cell `cell`, with
    leaves beside it. `chance` is that of the chain."""

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

    def draft(self) -> Draft | None:
        return Draft(self.tokens, self.parents, self.kinds) if self.tokens else None
