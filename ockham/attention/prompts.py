"""What patterns share whose rows choose together, block by block, while a prompt is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from ockham.core.choices import Choice
from ockham.core.seams import SequencePattern
from ockham.core.visits import BLOCK_KEYS, BlockVisits


@dataclass(frozen=True, slots=True)
class BlocksOfPrompt(SequencePattern):
    """The choices of one sequence, of each group of layers, for the query blocks before
    `dense_from`; None for a group whose rows visit all that they see."""

    choices: tuple[Choice | None, ...]
    last: int
    dense_from: int = 0

    @property
    def exact_until(self) -> int | None:
        """See `SequencePattern`."""
        return self.whole_until

    @property
    def whole_until(self) -> int:
        """See `SequencePattern`."""
        return self.dense_from * BLOCK_KEYS

    def for_prompt(self, tokens: int) -> SequencePattern:
        """See `SequencePattern`."""
        return replace(self, dense_from=max(0, tokens - self.last) // BLOCK_KEYS)

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`: nothing is left out before the queries are known."""
        return None

    def choice(self, group: int) -> Choice | None:
        """See `SequencePattern`."""
        choice = self.choices[group]
        if choice is None or not self.dense_from:
            return None
        return msgspec.structs.replace(choice, until=self.whole_until)
