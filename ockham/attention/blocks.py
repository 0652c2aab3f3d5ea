"""Patterns whose heads visit blocks by their place alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.numbers import shown
from ockham.core.seams import SequencePattern
from ockham.core.visits import EVERY, BlockVisits


@dataclass(frozen=True, slots=True, eq=False)
class BlocksByPlace(SequencePattern):
    """Heads of several kinds: `blocks(kind, block)` are the blocks that rows of a query block visit
    with heads of that kind, ascending, the block itself among them.

    Of each group, `of_groups` has the kinds of its heads, (layers, kv_heads), `EVERY` for those
    that visit all.
    """

    of_groups: tuple[Ints, ...]
    blocks: Callable[[int, int], Ints]

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`."""
        of = self.of_groups[group]
        lists: list[Ints] = []
        found = np.full(of.shape, EVERY, np.int32)
        for kind in np.unique(of[of != EVERY]).tolist():
            visited = self.blocks(kind, block)
            if len(visited) <= block:  # else it leaves nothing out
                found[of == kind] = len(lists)
                lists.append(visited)
        return BlockVisits(tuple(lists), found) if lists else None


MOST = (1 << 31) - 1
"""The largest number of blocks, layers or tokens that may be named."""


def at_least(least: int, **numbers: int | None) -> None:
    """Raise ValueError, with a sentence, for a number below the least, or that 32 bits do not hold;
    None is not looked at."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {shown(value)}.")
        if value is not None and value > MOST:
            raise ValueError(f"{name} must be at most {MOST}, got {shown(value)}.")
