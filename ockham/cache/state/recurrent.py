"""The pool of one group of layers whose state has a fixed size for each sequence.

Every token changes such a state as a whole, so that nothing of it can be taken back: a sequence
that may have to go back keeps a *checkpoint* of it. Each sequence, and each checkpoint, has a place
of its own in the pool; forks share one until one of them is about to be written to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, OckhamError
from ockham.kernels.layout import GroupLayout

Stored = npt.NDArray[np.generic]
NOWHERE = -1


class RecurrentView:
    """One sequence's state, or a checkpoint of it. Made, changed and released only by the pool.

    `tokens` is how many tokens went into it; its state is all zeros before the first."""

    __slots__ = ("place", "released", "tokens")

    def __init__(self) -> None:
        self.place = NOWHERE
        """Where in the pool it stands; nowhere while it is all zeros."""
        self.tokens = 0
        self.released = False


class ExportedRecurrent(msgspec.Struct):
    """A sequence's state as bytes, each plane's after another, for a pool of the same shape."""

    numerics_id: str
    tokens: int
    data: list[bytes]


class RecurrentPool:
    """Room for the state of `layout.pages` sequences and checkpoints in all layers of a group.

    `planes[p]` is (places, layers, heads, width), as its type is stored. Operations that need room
    either succeed or change nothing and say so. Raises ConfigError for a spec of another kind.
    """

    def __init__(self, layout: GroupLayout, numerics_id: str) -> None:
        if layout.spec.kind != "recurrent":
            raise ConfigError(f"a pool of recurrent state cannot hold {layout.spec.kind} state.")
        self.layout, self.numerics_id = layout, numerics_id
        count, layers = layout.pages, len(layout.layers)
        self.planes: list[Stored] = [
            np.zeros((count, layers, plane.heads, plane.width), plane.stored)
            for plane in layout.spec.planes
        ]
        self._refs: Ints = np.zeros(count, np.int32)
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """States that there is room for."""
        return len(self._free)

    def open(self) -> RecurrentView:
        """A sequence before its first token. It takes no room until it is written to."""
        return RecurrentView()

    def reserve(self, view: RecurrentView) -> bool:
        """Make a view's state its own, so that `place` may be written to. False, and nothing
        changed, if there is no room."""
        self._check(view)
        old = view.place
        if old != NOWHERE and self._refs[old] == 1:
            return True
        if not self._free:
            return False
        view.place = self._free.pop()
        self._refs[view.place] = 1
        for plane in self.planes:
            plane[view.place] = 0 if old == NOWHERE else plane[old]
        if old != NOWHERE:
            self._refs[old] -= 1
        return True

    def advance(self, view: RecurrentView, tokens: int) -> None:
        """Say that the state, which is the view's own, now has `tokens` tokens in it."""
        self._check(view)
        if tokens < view.tokens:
            raise OckhamError(
                f"a recurrent state of {view.tokens} tokens cannot go back to {tokens}; restore a "
                "checkpoint."
            )
        if tokens > view.tokens and (view.place == NOWHERE or self._refs[view.place] != 1):
            raise OckhamError("a recurrent state was written to before it was reserved.")
        view.tokens = tokens

    def fork(self, view: RecurrentView) -> RecurrentView:
        """A second view of the same state. Either may go on, once it is reserved."""
        self._check(view)
        twin = RecurrentView()
        twin.place, twin.tokens = view.place, view.tokens
        if twin.place != NOWHERE:
            self._refs[twin.place] += 1
        return twin

    def checkpoint(self, view: RecurrentView) -> RecurrentView:
        """The state as it stands, kept whatever becomes of the view. It takes room when the view is
        written to next."""
        return self.fork(view)

    def restore(self, view: RecurrentView, checkpoint: RecurrentView) -> None:
        """Take a view back to a checkpoint, which stays."""
        self._check(view)
        self._check(checkpoint)
        if checkpoint.place != NOWHERE:
            self._refs[checkpoint.place] += 1
        self._leave(view)
        view.place, view.tokens = checkpoint.place, checkpoint.tokens

    def release(self, view: RecurrentView) -> None:
        """Give back a view or a checkpoint. It must not be used again."""
        if view.released:
            raise OckhamError("a recurrent state was released twice.")
        self._leave(view)
        view.place, view.tokens, view.released = NOWHERE, 0, True

    def export(self, view: RecurrentView) -> ExportedRecurrent:
        """The state as bytes; none of one that is all zeros."""
        self._check(view)
        there = view.place != NOWHERE
        data = [plane[view.place].tobytes() for plane in self.planes] if there else []
        return ExportedRecurrent(self.numerics_id, view.tokens, data)

    def import_(self, exported: ExportedRecurrent) -> RecurrentView | None:
        """A new view of exported state; None if there is no room. Raises OckhamError if it is
        another model's, or does not have the size of this pool's states."""
        if exported.numerics_id != self.numerics_id:
            raise OckhamError(
                f"the state was computed under the numerics id {exported.numerics_id}, this engine "
                f"runs {self.numerics_id}; it would not have the same bits."
            )
        sizes = [plane[:1].nbytes for plane in self.planes] if exported.data else []
        if exported.tokens < 0 or [len(data) for data in exported.data] != sizes:
            raise OckhamError("an exported recurrent state has the wrong size.")
        if exported.tokens > 0 and not exported.data:
            raise OckhamError("an exported recurrent state has the wrong size.")
        view = RecurrentView()
        if exported.data:
            if not self.reserve(view):
                return None
            for plane, data in zip(self.planes, exported.data, strict=True):
                plane[view.place] = np.frombuffer(data, plane.dtype).reshape(plane.shape[1:])
        view.tokens = exported.tokens
        return view

    def check_integrity(self, views: Iterable[RecurrentView]) -> None:
        """Raise OckhamError unless `views`, checkpoints among them, are exactly what the pool
        thinks is held."""
        held = Counter(view.place for view in views if view.place != NOWHERE)
        refs = {place: int(n) for place, n in enumerate(self._refs) if n}
        if refs != dict(held):
            raise OckhamError("reference counts of recurrent states do not match the views.")
        if sorted([*self._free, *refs]) != list(range(self.layout.pages)):
            raise OckhamError("recurrent states were lost, or are free and held at once.")

    # -- inside --------------------------------------------------------------------------------

    @staticmethod
    def _check(view: RecurrentView) -> None:
        if view.released:
            raise OckhamError("a recurrent state was used after it was released.")

    def _leave(self, view: RecurrentView) -> None:
        if view.place == NOWHERE:
            return
        self._refs[view.place] -= 1
        if not self._refs[view.place]:
            self._free.append(view.place)
