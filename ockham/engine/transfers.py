"""State that a sequence is given, and does not compute: put into place, and booked."""

from __future__ import annotations

from collections.abc import Mapping

from ockham.cache.state import State
from ockham.core.clock import Clock
from ockham.core.cost import ModelCost
from ockham.core.ledger import Ledger
from ockham.engine import billing
from ockham.engine.sequence import Sequence
from ockham.kernels.base import Executor
from ockham.kernels.ops import Rope
from ockham.kernels.reference.making import stored_state


class Transfers:
    """What the scheduler has done when it gives a sequence state. `reuse` is the exact reuse's
    name, `ropes` are those of the layers; `backend_s` counts the seconds in the backend's
    operations."""

    def __init__(
        self,
        executor: Executor,
        state: State,
        cost: ModelCost,
        ledger: Ledger,
        reuse: str,
        ropes: Mapping[int, Rope | None],
        clock: Clock,
    ) -> None:
        self._executor, self._state = executor, state
        self._cost, self._ledger, self._reuse = cost, ledger, reuse
        self._ropes = ropes
        self._clock = clock
        self.backend_s = 0.0

    def place(self, sequence: Sequence, stop: int) -> None:
        """Copy what a sequence is given, up to the cell `stop`, into its reserved cells."""
        assert sequence.view is not None, "a running sequence has a view"
        assert sequence.splicing is not None, "only a splice gives"
        given = sequence.splicing.splice.given(sequence.computed, stop)
        if not len(given.cells):
            return
        begin = self._clock()
        try:
            for group, source in enumerate(given.slots):
                target = self._state.slots(sequence.view, group, given.cells)
                self._executor.reposition(group, source, target, given.shifts)
            for group, layout in enumerate(self._state.groups if given.made else ()):
                target = self._state.slots(sequence.view, group, given.cells)
                made = stored_state(layout, self._ropes, given.made or {}, given.cells)
                self._state.planes.write(group, target, made)
        finally:
            self.backend_s += self._clock() - begin
        billing.book_copies(sequence, len(given.cells), self._cost, self._ledger)

    def reordered(self, sequence: Sequence, cells: range) -> None:
        """A sequence's cells were put in another order."""
        billing.book_reordering(sequence, cells, self._cost, self._ledger)

    def given(self, sequence: Sequence, stop: int) -> None:
        """A sequence's cells up to `stop` are about to be valid, some of them given."""
        billing.book_given(sequence, stop, self._cost, self._ledger)

    def reused(self, sequence: Sequence, tokens: int, held: int) -> None:
        """So many tokens of an admitted sequence need not be computed; so many are held."""
        billing.book_reuse(sequence, tokens, held, self._reuse, self._cost, self._ledger)
