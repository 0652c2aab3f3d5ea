"""How many inputs of a matrix share a scale, from its weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ockham.core.arrays import Array, Floats


def choose_group(blocks: Iterable[Array], groups: Sequence[int], least_gain: float) -> int:
    """The size of the groups of a matrix, of sizes that rise and each divide the next.

    FineQuant (Kim et al. 2023, arXiv:2308.09723): from the largest groups on they are made smaller
    while that makes the range of a group smaller, on average over the matrix, by more than a share
    (`least_gain`). Matrices with outliers get small groups. `blocks` are its rows, one after
    another.
    """
    ranges: dict[int, float] = dict.fromkeys(groups, 0.0)
    for block in blocks:
        largest: Floats = np.abs(block.astype(np.float32))
        wide = 1
        for group in groups:
            largest = largest.reshape(len(largest), -1, group // wide).max(axis=2)
            wide = group
            ranges[group] += float(largest.sum(dtype=np.float64)) * group
    chosen = groups[-1]
    for group in reversed(groups[:-1]):
        if ranges[group] >= (1 - least_gain) * ranges[chosen]:
            break
        chosen = group
    return chosen
