"""Drafting with an assistant, which reads the state of the model that it drafts for."""

from __future__ import annotations

import time

from ockham.core.arrays import Floats, Ints
from ockham.core.seams import Foreseen, HeadModel, LoadHead, OwnRows, Rows, Seen, Wants
from ockham.draft.modelled.carrying import CarryingDrafter
from ockham.draft.modelled.drafting import Place
from ockham.draft.modelled.growing import Growing
from ockham.draft.modelled.stream import ROOT, ModelStream


class SharingDrafter(CarryingDrafter):
    """What drafts with a block that has a state of its own, or with an assistant that has none: its
    rows all stand behind what the model has computed of the text, and what they know of each other
    is carried. So it has nothing to read before it drafts."""

    def attach_head(self, load: LoadHead) -> None:
        """See `Drafter`."""
        super().attach_head(load)
        self.reads = not self._block.shares

    def open(self, salt: str) -> ModelStream:
        """See `Drafter`. Streams share nothing but the steps that they are computed in."""
        return SharingStream(self._block) if self._block.shares else super().open(salt)

    def _catch_up(self, growing: list[Growing]) -> tuple[list[Place], Foreseen | None]:
        if not self._block.shares:
            return super()._catch_up(growing)
        able, chunks = [], []
        for each in growing:
            stream = each.stream
            assert isinstance(stream, SharingStream), "all are of this drafter"
            state, view = stream.state, each.wish.view
            if state is not None and view.tokens + 1 == stream.position:
                able.append(each)
                beside = self._block.carry([state[None]])
                chunks.append(Rows(view, [stream.newest], beside=beside))
        if not able:
            return [], None
        began = time.perf_counter()
        foreseen = self._run(chunks)
        self._cost.learn(len(chunks), time.perf_counter() - began)
        return [(each, ROOT) for each in able], foreseen

    def _rows(self, each: Growing, numbers: list[int], above: list[list[int]]) -> Rows:
        rows = super()._rows(each, numbers, above)
        if not self._block.shares:
            return rows
        return Rows(each.wish.view, rows.tokens, beside=rows.beside)


class SharingStream(ModelStream):
    """One sequence: its newest token, and the hidden state of the row by which it was chosen, where
    that is known."""

    def __init__(self, model: HeadModel) -> None:
        super().__init__(model)
        (self._layer,) = model.layers
        self._wants = Wants(hidden=(self._layer,), newest=True)
        self._length = 0
        """Tokens of the sequence."""
        self.newest = -1
        self._state: Floats | None = None
        self._of = 0
        """How many tokens the sequence had when `_state` was observed."""

    @property
    def position(self) -> int:
        return self._length

    @property
    def state(self) -> Floats | None:
        """None if the newest token came after another row."""
        return self._state if self._length == self._of + 1 else None

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return self._wants

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        self._state, self._of = seen.hidden[self._layer][0], self._length

    def extend(self, tokens: Ints) -> None:
        self._length += len(tokens)
        if len(tokens):
            self.newest = int(tokens[-1])
        self.fresh = False

    def settle(self) -> None:
        """Nothing of a draft is kept."""

    def grow(self, parent: int, token: int, cell: int) -> None:
        """A row has no cell."""

    def reserve(self, more: int) -> bool:
        """See `ModelStream`."""
        return True

    def close(self) -> None:
        """See `DraftStream`."""
        super().close()
        self._state = None

    @property
    def bytes(self) -> int:
        """See `DraftStream`."""
        return 0 if self._state is None else self._state.nbytes
