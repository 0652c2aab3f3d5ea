"""From where in a prompt others may go on, where layers keep no keys and values."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from ockham.cache.state import State
from ockham.core.arrays import Ints
from ockham.engine.sequence import Sequence

LEAST_TOKENS = 64
"""A checkpoint where prompts part is worth a step that ends there if it saves so many tokens."""


class Checkpoints:
    """What such layers keep of a token is there for the next rows alone, but for checkpoints: the
    ends of a prompt and of its answer, every `every` tokens of a prompt, and where another prompt
    is known to part from it."""

    def __init__(self, state: State, every: int) -> None:
        self._groups = [g for g, layout in enumerate(state.groups) if not layout.spec.attends]
        self.kept = bool(self._groups)
        """Whether there are such layers."""
        self._page_tokens, self._every = state.page_tokens, every

    def part(self, sequence: Sequence, at: int) -> None:
        """Another prompt has the first `at` tokens in common with the sequence's, and no more. The
        end of the page before is a good place to go on from, on disk too."""
        place = at - at % self._page_tokens
        if self.kept and sequence.least_rows == 1 and place >= sequence.computed + LEAST_TOKENS:
            sequence.partings.add(place)

    def until(self, sequence: Sequence, rows: int) -> int:
        """How many of the next rows of a prompt are computed in one step, at most."""
        due = [place - sequence.computed for place in sequence.partings]
        return min((rows, *(ahead for ahead in due if ahead > 0)))

    def of(self, sequence: Sequence, cells: int, tables: Many[Ints]) -> list[Ints]:
        """What others may have of a sequence's state, whose first cells stand in `tables`."""
        if not self.kept or self._is_one(sequence, cells):
            return list(tables)
        return [
            np.full(len(table), -1, np.int32) if group in self._groups else table
            for group, table in enumerate(tables)
        ]

    def _is_one(self, sequence: Sequence, cells: int) -> bool:
        within = cells < sequence.prompt_tokens and cells not in sequence.partings
        if within and cells - sequence.checkpoint_at < self._every:
            return False
        sequence.checkpoint_at = cells
        sequence.partings = {place for place in sequence.partings if place > cells}
        return True
