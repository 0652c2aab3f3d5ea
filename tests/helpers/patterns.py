"""Patterns of attention for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ockham.core.seams import SequencePattern
from ockham.core.visits import EVERY, BlockVisits
from ockham.kernels.base import GroupLayout


@dataclass(frozen=True)
class RandomPattern(SequencePattern):
    """Any blocks, drawn anew for each query block, group, layer and head, the same each time."""

    layouts: Sequence[GroupLayout]
    seed: int = 0

    def visits(self, group: int, block: int) -> BlockVisits | None:
        rng = np.random.default_rng([self.seed, group, block])
        if rng.random() < 0.1:
            return None
        shape = len(self.layouts[group].layers), self.layouts[group].spec.uniform.heads
        chosen = [np.flatnonzero(rng.random(block + 1) < share) for share in (0.0, 0.3, 0.7)]
        lists = [np.union1d(each, [block]).astype(np.int32) for each in chosen]
        return BlockVisits(tuple(lists), rng.integers(EVERY, len(lists), shape).astype(np.int32))


@dataclass(frozen=True)
class AllBlocks(SequencePattern):
    """Every block, said with the list of them all."""

    layouts: Sequence[GroupLayout]

    def visits(self, group: int, block: int) -> BlockVisits | None:
        shape = len(self.layouts[group].layers), self.layouts[group].spec.uniform.heads
        return BlockVisits((np.arange(block + 1, dtype=np.int32),), np.zeros(shape, np.int32))
