"""What the rules share by which dropped cells go on in cells that stay: which is nearest to which.

No technique lives here. Cells are compared by the cosine of their keys, as they are stored: rotated
to their positions, so that of two tokens with alike keys the nearer ones are more alike.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.seams import Merges

Merge = Literal["none", "values", "both"]
"""What of a dropped cell goes on in another: nothing, its values, or its key too."""

AT_ONCE = 512
"""Rows compared with all others at once, which bounds the memory."""


def directions(keys: Floats) -> Floats:
    """Keys (..., n, width) with the length 1; 0 stays 0."""
    lengths = np.linalg.norm(keys, axis=-1, keepdims=True)
    found: Floats = np.divide(keys, lengths, out=np.zeros_like(keys), where=lengths > 0)
    return found


def nearest(of: Floats, among: Floats) -> tuple[Longs, Floats]:
    """Of each direction in `of` (n, width) which of `among` (m, width) is the nearest, the first
    where several are, and their cosine."""
    match, cosines = np.empty(len(of), np.int64), np.empty(len(of), np.float32)
    for start in range(0, len(of), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        products = of[part] @ among.T
        match[part] = products.argmax(axis=1)
        cosines[part] = products.max(axis=1)
    return match, cosines


class Pairs:
    """Cells that go on in others, gathered head by head."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, Longs, Longs, Doubles | Floats]] = []

    def add(
        self, layer: int, head: int, dropped: Longs, into: Longs, weights: Doubles | Floats
    ) -> None:
        """Of a layer of the group and a head: cells held, the numbers of the cells that stay in
        which they go on, and their weights beside 1, (m,) each."""
        self._parts.append((layer, head, dropped, into, weights))

    def merges(self, merge: Merge) -> Merges | None:
        """All of them; None if there are none."""
        counts = [len(weights) for *_, weights in self._parts]
        if merge == "none" or not sum(counts):
            return None

        def joined(number: int) -> Ints:
            return np.concatenate([part[number] for part in self._parts]).astype(np.int32)

        return Merges(
            layers=np.repeat([part[0] for part in self._parts], counts).astype(np.int32),
            heads=np.repeat([part[1] for part in self._parts], counts).astype(np.int32),
            dropped=joined(2),
            into=joined(3),
            weights=np.concatenate([part[4] for part in self._parts]).astype(np.float32),
            keys=merge == "both",
        )
