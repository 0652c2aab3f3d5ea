"""Kinds of drafted tokens by the probability that whoever drafts them gives them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import Likely, Noise, OwnModel
from ockham.kernels.sampling import Draw

EDGES = (0.1, 0.25, 0.45, 0.65, 0.85, 0.95)
SHARES = (0.06, 0.16, 0.33, 0.53, 0.73, 0.88, 0.95)
"""Of a token that is given a probability between two edges, what is accepted at first."""


def kind_of(share: float) -> int:
    """The kind of a token that is given this probability."""
    return bisect_right(EDGES, share)


def ranked(
    model: OwnModel, likely: Likely, noises: Sequence[Noise | None], positions: Sequence[int]
) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each row with their probabilities, first the one that would be drawn
    there: the likeliest, or with a `Noise` the one that the noise of its position chooses."""
    draws = [
        Draw(row, noise.params, noise.seed, noise.stream, positions[row])
        for row, noise in enumerate(noises)
        if noise is not None
    ]
    drawn = dict(zip((draw.row for draw in draws), model.sample(likely.logits, draws), strict=True))
    sums = _log_sums(likely.logits)
    found = []
    for row, tokens in enumerate(likely.tokens.tolist()):
        ids = [token for token in tokens if token >= 0]
        first = drawn.get(row)
        if first is not None:
            ids = [first, *(token for token in ids if token != first)][: len(tokens)]
        shares = np.exp(likely.logits[row, ids] - sums[row]).tolist()
        found.append(list(zip(ids, shares, strict=True)))
    return found


def _log_sums(logits: Floats) -> Floats:
    largest = logits.max(axis=1, keepdims=True)
    sums: Floats = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return sums
