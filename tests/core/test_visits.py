"""What rows skip is what their lists leave out, counted key by key."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.visits import BLOCK_KEYS, EVERY, BlockVisits, Skipped, Visits, merged

LAYERS, HEADS = 2, 3


def visits(rng: np.random.Generator, own_blocks: np.ndarray) -> Visits:
    """Each query block visits other blocks with each layer and head; some rows visit them all."""
    found = []
    query_blocks = np.full(len(own_blocks), EVERY, np.int32)
    for block in np.unique(own_blocks).tolist():
        if rng.random() < 0.2:
            continue
        lists = [
            np.union1d(np.flatnonzero(rng.random(block + 1) < 0.4), [block]).astype(np.int32)
            for _ in range(2)
        ]
        query_blocks[own_blocks == block] = len(found)
        found.append(BlockVisits(tuple(lists), rng.integers(EVERY, 2, (LAYERS, HEADS))))
    return merged(query_blocks, found) if found else visits(rng, own_blocks)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("window", [None, 40, 300])
def test_skipped_keys_and_cells_are_those_of_the_mask(seed: int, window: int | None) -> None:
    rng = np.random.default_rng([seed, window or 0])
    first, rows = int(rng.integers(1, 500)), int(rng.integers(1, 200))
    high = np.arange(first, first + rows, dtype=np.int32)
    low = np.zeros_like(high) if window is None else np.maximum(high - window, 0)
    own = visits(rng, (high - 1) // BLOCK_KEYS)
    keys = cells = 0
    by_row = [0] * rows
    for layer in range(LAYERS):
        read = np.zeros((HEADS, high[-1]), np.bool_)
        seen = np.zeros((HEADS, high[-1]), np.bool_)
        for row in range(rows):
            sees = np.zeros(high[-1], np.bool_)
            sees[low[row] : high[row]] = True
            mask = own.mask(row, layer, int(high[-1]))
            assert mask[:, high[row] - 1].all(), "a row visits its own key"
            by_row[row] += int((sees & ~mask).sum())
            read |= sees & mask
            seen |= sees
        cells += int((seen & ~read).sum())
    keys = sum(by_row)
    assert own.skipped(slice(0, rows), low, high) == Skipped(keys, cells)
    for row in range(0, rows, 17):
        one = slice(row, row + 1)
        assert own.skipped_keys(row, low[one], high[one]) == by_row[row]
        assert own.skipped(one, low[one], high[one]).keys == by_row[row]
