"""An order of keys in which those that are alike stand side by side: what csrc/state/alike.h means,
in NumPy, with sums in the same order."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.choosers import ROUNDS, SUMMARY_KEYS, padded


def alike(keys: Floats) -> Ints:
    """The order of keys (n, head_dim): n places among them, by balanced 2-means from above.

    The keys are parted in two halves, those in halves again, down to neighbourhoods of 16. A part
    begins as its first half and its second half by place; then keys go to the side of whose mean
    direction they have more of. Halves are of whole blocks of 64 keys as long as there are several.
    """
    wide = np.zeros((len(keys), padded(keys.shape[-1])), np.float32)
    wide[:, : keys.shape[-1]] = keys
    lengths = np.sqrt(_products(wide, wide))
    good = (lengths > 0) & np.isfinite(lengths)
    by = np.where(good, np.float32(1) / np.where(good, lengths, np.float32(1)), np.float32(0))
    wide = np.where(good[:, None], wide, np.float32(0)) * by[:, None]
    order: Ints = np.arange(len(keys), dtype=np.int32)
    _part(wide, order)
    return order


def _part(keys: Floats, order: Ints) -> None:
    """Order the keys whose places `order` has, which ascend."""
    if len(order) <= SUMMARY_KEYS:
        return
    unit = BLOCK_KEYS if len(order) > BLOCK_KEYS else SUMMARY_KEYS
    middle = max(len(order) // unit // 2, 1) * unit
    for _ in range(ROUNDS):
        before = order[:middle].copy()
        direction = _mean(keys[order[:middle]]) - _mean(keys[order[middle:]])
        scores = _products(keys[order], direction[None])
        ranked = order[np.lexsort((order, -scores))]
        order[:middle], order[middle:] = np.sort(ranked[:middle]), np.sort(ranked[middle:])
        if np.array_equal(before, order[:middle]):
            break
    _part(keys, order[:middle])
    _part(keys, order[middle:])


def _mean(rows: Floats) -> Floats:
    """Of rows (n, width), added one after the other."""
    total: Floats = np.zeros(rows.shape[-1], np.float32)
    for row in rows:
        total = total + row
    found: Floats = total * (np.float32(1) / np.float32(len(rows)))
    return found


def _products(rows: Floats, others: Floats) -> Floats:
    """The products of rows (n, width) with others, of which there are as many or one: (n,). Each
    16th element is summed, and of those sums each half onto the other."""
    terms = (rows * others).reshape(len(rows), -1, 16)
    sums: Floats = np.zeros((len(rows), 16), np.float32)
    for term in range(terms.shape[1]):
        sums = sums + terms[:, term]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    found: Floats = sums[:, 0]
    return found
