"""One sequence as a draft model has read it, and the branches that it drafted."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.arrays import Ints
from ockham.core.seams import Draft, DraftStream, Rows, SecondModel

ROOT = -1
"""Where the first drafted tokens hang: the last token that was read."""


class ModelStream(DraftStream):
    """A view of the draft model's state: `committed` cells of what the sequence says, then those of
    branches that were computed while drafting; `unread` tokens are still to be computed.

    What was drafted and is then said is not computed again: its cells are moved to where a chain's
    would stand. `recompute`: it is, because drafted rows were computed approximately.
    """

    def __init__(self, model: SecondModel, recompute: bool = False) -> None:
        self._model = model
        self._recompute = recompute
        self.view = model.open()
        self.committed = 0
        self.unread: list[int] = []
        self.following = 0.5
        """The chance of the best token below one, of late: what computing one more row is for."""
        self.skipped, self.rest = 0, 1
        """Proposals that were not worth a row, and how many are skipped before one is tried."""
        self.fresh = True
        """Whether it has not yet read its prompt."""
        self._last = 0
        self._branches: dict[tuple[int, int], int] = {}
        """(cell of the parent or `ROOT`, token) -> the cell of a row that was computed."""
        self._path: list[tuple[int, int]] = []
        """Of those, what has been said since: (cell, token)."""

    @property
    def position(self) -> int:
        """That of the sequence's next token."""
        return self.committed + len(self._path) + len(self.unread)

    def extend(self, tokens: Ints) -> None:
        """See `DraftStream`."""
        for token in tokens.tolist():
            at = self._path[-1][0] if self._path else ROOT
            cell = None if self.unread else self._branches.get((at, token))
            if cell is None:
                self.unread.append(token)
            else:
                self._path.append((cell, token))

    def settle(self) -> None:
        """Keep the branch that the sequence took, and forget the others."""
        path, self._path = self._path, []
        self._branches.clear()
        if self._recompute:
            self.unread[:0] = [token for _, token in path]
        elif path:
            cells = [cell for cell, _ in path]
            chain = list(range(self.committed, self.committed + len(path)))
            if cells != chain:
                self._model.move(self.view, cells, chain)
            self.committed += len(path)
            self._last = path[-1][1]
        if not self.unread and self.committed:
            self.unread = [self._last]  # what comes after it is wanted again
            self.committed -= 1
        self._model.truncate(self.view, self.committed)

    def restart(self, tokens: list[int]) -> None:
        """Forget all that was read, and read this."""
        self._path.clear()
        self._branches.clear()
        self.committed, self.unread = 0, list(tokens)
        self._model.truncate(self.view, 0)

    def take(self, most: int) -> list[int]:
        """The next unread tokens, which are computed now."""
        tokens, self.unread = self.unread[:most], self.unread[most:]
        self.committed += len(tokens)
        self._last = tokens[-1]
        return tokens

    def rows(self, most: int) -> Rows:
        """The same as rows of a step."""
        return Rows(self.view, self.take(most))

    def grow(self, parent: int, token: int, cell: int) -> None:
        """A drafted token's row is computed in this cell, below the one in `parent`'s."""
        self._branches[parent, token] = cell

    def reserve(self, more: int) -> bool:
        """Whether the next `more` rows have cells."""
        cells = self.view.tokens + more
        return cells <= self._model.longest and self._model.reserve(self.view, cells)

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        """A model drafts for all sequences together (`Drafter.propose_all`)."""
        raise TypeError("a draft model proposes for all sequences together.")

    def close(self) -> None:
        """See `DraftStream`."""
        self._model.release(self.view)

    @property
    def bytes(self) -> int:
        """See `DraftStream`."""
        return self._model.bytes(self.view)
