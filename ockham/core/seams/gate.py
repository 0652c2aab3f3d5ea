"""Which parts of the model run for the rows of a sequence: `Gate`."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec

from ockham.core.cost import Skips
from ockham.core.seams.observe import Observer


class GatedModel(msgspec.Struct, frozen=True):
    """The model as a gate sees it: so many layers, each of which has the sublayers (layer,
    "attention") and (layer, "feed_forward")."""

    layers: int


class SequenceGate(Observer, Protocol):
    """The sublayers that the rows of one sequence skip.

    A row that skips an attention writes no key and no value there and looks at none. So all rows of
    a sequence skip the same ones: what is skipped is asked for once, before the first row.
    """

    observes: ClassVar[bool] = False
    """Whether it wants to know something of the sequence's rows, as an `Observer`."""

    skips: Skips
    """The sublayers that no row of the sequence runs."""

    def fork(self) -> SequenceGate:
        """That of another sequence, which goes on from this one's state."""
        return self


class Gate(Protocol):
    """Which parts of the model run for the rows of a sequence.

    State depends on it, so that a gate which skips anything is not exact. If what is skipped
    follows from the ask alone, the class says `shares = True`: sequences that ask the same may go
    on from each other's state.
    """

    name: ClassVar[str]

    def open(self, ask: Any, model: GatedModel) -> SequenceGate | None:
        """The gate of a sequence, from what its request asks (the class's `Ask`); None if its rows
        run everything. Raises InvalidRequest where the ask does not fit the model."""
        ...
