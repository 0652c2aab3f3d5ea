"""Draft with extra heads on the model's last hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream, OwnModel, OwnRows, Seen, Wants, Wish
from ockham.draft.structures.certainty import SHARES, kind_of, ranked
from ockham.draft.structures.levels import grow
from ockham.draft.structures.trained import TrainedOptions, read_trained, silu
from ockham.model.checkpoint.draft_files import MedusaHeads

_CHOICES = 4
"""Of each head, so many of the likeliest tokens."""
_MOST_HEADS = 8
"""Heads beyond these are never right often enough."""


@register("drafter", "medusa", exact=True, books=("medusa",), paper="160")
class Medusa(Drafter):
    """What heads trained on the frozen model say of the tokens after the next one (Medusa-1).

    Head i turns the hidden state behind the sequence's latest token into one that the model's own
    output head reads as the token i + 1 places after that. All heads of all sequences are one
    small product and one pass through the output head. A head does not know what the ones before
    it chose, so that every choice of one may follow every choice of the one before: a tree. A
    token's kind is its head and the probability that it is given.
    """

    name: ClassVar[str] = "medusa"
    automatic: ClassVar[bool] = False
    joint: ClassVar[bool] = True
    observes: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = SHARES * _MOST_HEADS

    Options: ClassVar[type[msgspec.Struct]] = TrainedOptions

    def __init__(self, options: TrainedOptions) -> None:
        self._name = options.model

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        heads = read_trained(self._name, MedusaHeads, self.name, model)
        self._heads = min(heads.count, _MOST_HEADS)
        weights = heads.weights[: self._heads].reshape(-1, model.hidden_size)
        self._weights = np.ascontiguousarray(weights.T)
        self._biases = heads.biases[: self._heads].reshape(-1)
        self._model = model

    def open(self, salt: str) -> StandingStream:
        """See `Drafter`."""
        return StandingStream(self._model.layers - 1)

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """See `Drafter`."""
        drafts: list[Draft | None] = [None] * len(streams)
        standing = [
            (place, stream, stream.hidden)
            for place, stream in enumerate(streams)
            if isinstance(stream, StandingStream)
            and stream.hidden is not None
            and wishes[place].most > 0
        ]
        if not standing:
            return drafts
        rows = self._rows(np.stack([hidden for _, _, hidden in standing]))
        likely = self._model.head(rows, _CHOICES)
        found = ranked(
            self._model,
            likely,
            [wishes[place].noise for place, _, _ in standing for _ in range(self._heads)],
            [stream.length + head for _, stream, _ in standing for head in range(self._heads)],
        )
        for i, (place, _, _) in enumerate(standing):
            levels = [
                [(token, head * len(SHARES) + kind_of(share)) for token, share in choices]
                for head, choices in enumerate(found[i * self._heads : (i + 1) * self._heads])
            ]
            wish = wishes[place]
            tokens, parents, kinds = grow(levels, wish.accepted, worth, wish.most)
            drafts[place] = Draft(tokens, parents, kinds) if tokens else None
        return drafts

    def _rows(self, hidden: Floats) -> Floats:
        """What the output head is to read, of hidden states (n, d): (n * heads, d)."""
        turned = silu(hidden @ self._weights + self._biases)
        rows: Floats = turned.reshape(len(hidden), self._heads, -1) + hidden[:, None]
        return rows.reshape(-1, hidden.shape[1])


class StandingStream(DraftStream):
    """How the row before a sequence's latest token stands after the last layer, `layer`, where that
    is known."""

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self._wants = Wants(hidden=(layer,), newest=True)
        self.length = 0
        """Tokens of the sequence."""
        self._hidden: Floats | None = None
        self._of = 0
        """How many tokens the sequence had when `_hidden` was observed."""

    @property
    def hidden(self) -> Floats | None:
        """None if the latest token came after another row."""
        return self._hidden if self.length == self._of + 1 else None

    def extend(self, tokens: Ints) -> None:
        self.length += len(tokens)

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return self._wants

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        self._hidden, self._of = seen.hidden[self._layer][0], self.length

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """The heads draft for all sequences together (`Medusa.propose_all`)."""
        raise TypeError("the heads propose for all sequences together.")

    def close(self) -> None:
        self._hidden = None

    @property
    def bytes(self) -> int:
        return 0 if self._hidden is None else self._hidden.nbytes
