"""The likeliest tokens after each token, as they were found last.

`PlainAdjacency` is the plain twin of csrc/drafts/adjacency.h, which decides everything as it does.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from ockham.core.arrays import Ints
from ockham.draft.structures.bounded_map import BoundedMap
from ockham.kernels.native import core

WIDTH = 8
"""Tokens of a row."""
DEEPER = 2
"""Kinds of depth: the first token of a draft, and those after it."""
ROW_BYTES = 52 + 4 * 4
"""Of the native matrix, with its table when that has just grown."""

Drafted = tuple[list[int], list[int], list[int]]
"""Tokens, parents (-1 for the root) and kinds."""


class Adjacency(Protocol):
    """A sparse matrix with a row of up to `WIDTH` tokens for each token of a tenant that was seen:
    at most `capacity` rows (`BoundedMap`)."""

    def extend(self, tenant: int, tokens: Ints) -> None:
        """A text has these tokens one after another: each comes first in the row of the one before
        it."""
        ...

    def observe(self, tenant: int, tokens: Ints, candidates: Ints) -> None:
        """`candidates` (n, `WIDTH`) are now the rows of `tokens` (n,). A negative token ends a row;
        a row that begins with one stays as it was."""
        ...

    def propose(
        self, tenant: int, token: int, most: int, accepted: Sequence[float], worth: float
    ) -> Drafted:
        """The `most` likeliest tokens of the tree below `token`, in which each token's children are
        its row, as far as their chance is at least `worth`. A token's kind is its place in the row,
        plus `WIDTH` below the first level."""
        ...

    @property
    def size(self) -> int:
        """Rows."""
        ...

    @property
    def bytes(self) -> int: ...


class PlainAdjacency:
    def __init__(self, capacity: int) -> None:
        self._rows: BoundedMap[list[int]] = BoundedMap(capacity, list)

    @property
    def size(self) -> int:
        return len(self._rows)

    @property
    def bytes(self) -> int:
        return 400 * len(self._rows)

    def extend(self, tenant: int, tokens: Ints) -> None:
        for token, following in pairwise(tokens.tolist()):
            row = self._rows.use((tenant, token, -1))
            if following in row:
                row.remove(following)
            row.insert(0, following)
            del row[WIDTH:]

    def observe(self, tenant: int, tokens: Ints, candidates: Ints) -> None:
        for token, best in zip(tokens.tolist(), candidates.tolist(), strict=True):
            if best[0] >= 0:
                end = next((i for i, each in enumerate(best) if each < 0), WIDTH)
                self._rows.use((tenant, token, -1))[:] = best[:end]

    def propose(
        self, tenant: int, token: int, most: int, accepted: Sequence[float], worth: float
    ) -> Drafted:
        tokens: list[int] = []
        parents: list[int] = []
        kinds: list[int] = []
        offers: list[tuple[float, int, int, int, int, int]] = []
        serial = 0
        after, above, parent, depth = token, 1.0, -1, 0
        while True:
            for rank, following in enumerate(self._rows.find((tenant, after, -1)) or ()):
                kind = WIDTH * min(depth, DEEPER - 1) + rank
                chance = above * accepted[kind]
                if chance >= worth:
                    heapq.heappush(offers, (-chance, serial, following, parent, kind, depth))
                    serial += 1
            if not offers or len(tokens) == most:
                return tokens, parents, kinds
            less, _, after, above_it, kind, level = heapq.heappop(offers)
            tokens.append(after)
            parents.append(above_it)
            kinds.append(kind)
            above, parent, depth = -less, len(tokens) - 1, level + 1


def make_adjacency(capacity: int) -> Adjacency:
    """The native matrix where the core was built, the plain one elsewhere."""
    return PlainAdjacency(capacity) if core is None else core.Adjacency(capacity)
