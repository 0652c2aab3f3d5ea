"""The plan of a step: which rows of which sequences it computes, while it is being filled."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.engine.sequence import Sequence
from ockham.engine.speculation.tree import Tree


@dataclass(slots=True)
class Chunk:
    """The next `rows` rows of a sequence, the last of which are those of `draft`."""

    sequence: Sequence
    rows: int
    draft: Tree | None = None

    @property
    def kept(self) -> int:
        """Rows whose cells are valid once they are computed, whatever is drawn from them."""
        return self.rows if self.draft is None else self.rows - len(self.draft)

    @property
    def logits(self) -> int:
        """Rows whose logits are wanted."""
        return self.rows if self.draft is not None else len(self.sequence.wanted_logits(self.rows))


class Plan:
    """A step being filled: what is in it and how much room is left."""

    def __init__(self, rows: int, logits: int) -> None:
        self.rows = rows
        self.logits = logits
        self.chunks: list[Chunk] = []

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.rows -= chunk.rows
        self.logits -= chunk.logits

    def remove(self, sequence: Sequence) -> None:
        for chunk in self.chunks:
            if chunk.sequence is sequence:
                self.chunks.remove(chunk)
                self.rows += chunk.rows
                self.logits += chunk.logits
                return
