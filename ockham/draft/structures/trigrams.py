"""How often tokens followed the two tokens before them, and a search tree among them.

`PlainTrigrams` is the plain twin of csrc/drafts/trigrams.h, which decides everything as it does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import sqrt
from typing import Protocol

from ockham.core.arrays import Ints
from ockham.draft.structures.bounded_map import BoundedMap
from ockham.kernels.native import core

WIDTH = 6
"""Continuations of a context that are counted."""
SHARES = (0.0, 0.1, 0.25, 0.45, 0.6, 0.8)
"""Shares of a continuation at which a kind begins."""
CONTEXT_BYTES = 56 + 4 * 4
"""Of the native counts, with their table when that has just grown."""
_MOST_COUNTED = 64
"""Of a context, before all its counts are halved: what is older counts less."""
_EXPLORATION = 0.5

Drafted = tuple[list[int], list[int], list[int]]
"""Tokens, parents (-1 for the root) and kinds."""


class Trigrams(Protocol):
    """Counts of what followed each pair of tokens of a tenant, and each single one: of at most
    `capacity` of them (`BoundedMap`)."""

    def extend(self, tenant: int, tokens: Ints, known: int) -> None:
        """A text goes on with `tokens`, of which the first `known` (at most two of the text before)
        were counted already."""
        ...

    def propose(
        self,
        tenant: int,
        before: int,
        last: int,
        most: int,
        accepted: Sequence[float],
        worth: float,
    ) -> Drafted:
        """At most `most` tokens after `before` (-1 if there is none) and `last`, with a chance of
        at least `worth`, each drafted by one walk of a Monte Carlo tree search.

        A walk chooses the child with the largest sum of the mean chance of what was drafted below
        it, and of its own share times sqrt(walks of the parent) / (1 + its walks): it exploits what
        is likely and explores what is not drafted yet. A token's kind is made of its share of the
        counts, plus `len(SHARES)` if two tokens before it are known."""
        ...

    @property
    def size(self) -> int:
        """Contexts."""
        ...

    @property
    def bytes(self) -> int: ...


class _Node:
    __slots__ = (
        "before",
        "chance",
        "children",
        "drafted",
        "kind",
        "parent",
        "share",
        "token",
        "visits",
        "worth",
    )

    def __init__(
        self, token: int, parent: _Node | None, before: int, kind: int, chance: float, share: float
    ) -> None:
        self.token, self.parent, self.before, self.kind = token, parent, before, kind
        self.chance, self.share = chance, share
        self.children: list[_Node] | None = None
        self.drafted, self.visits, self.worth = -1, 0, 0.0

    def score(self, root: float) -> float:
        mean = self.worth / self.visits if self.visits else 0.0
        return mean + _EXPLORATION * self.share * root / (1.0 + self.visits)


class PlainTrigrams:
    def __init__(self, capacity: int) -> None:
        self._counts: BoundedMap[dict[int, int]] = BoundedMap(capacity, dict)

    @property
    def size(self) -> int:
        return len(self._counts)

    @property
    def bytes(self) -> int:
        return 600 * len(self._counts)

    def extend(self, tenant: int, tokens: Ints, known: int) -> None:
        text = tokens.tolist()
        for i in range(max(1, known), len(text)):
            if i > 1:
                _count(self._counts.use((tenant, text[i - 2], text[i - 1])), text[i])
            _count(self._counts.use((tenant, text[i - 1], -1)), text[i])

    def propose(
        self,
        tenant: int,
        before: int,
        last: int,
        most: int,
        accepted: Sequence[float],
        worth: float,
    ) -> Drafted:
        draft: Drafted = ([], [], [])
        root = _Node(last, None, before, -1, 1.0, 1.0)
        root.visits = 1
        for _ in range(2 * most):
            if len(draft[0]) == most:
                break
            at = root
            while at.visits:
                if at.children is None:
                    at.children = self._children(at, tenant, accepted, worth)
                if not at.children:
                    break
                walks = sqrt(at.visits)
                at = max(at.children, key=lambda child: child.score(walks))
            value = 0.0
            if not at.visits:
                assert at.parent is not None, "the root was visited"
                value = at.chance
                at.drafted = len(draft[0])
                for part, what in zip(draft, (at.token, at.parent.drafted, at.kind), strict=True):
                    part.append(what)
            elif at is root:
                break
            here: _Node | None = at
            while here is not None:
                here.visits += 1
                here.worth += value
                here = here.parent
        return draft

    def _children(
        self, at: _Node, tenant: int, accepted: Sequence[float], worth: float
    ) -> list[_Node]:
        """What followed the last two tokens, then what followed the last."""
        children: list[_Node] = []
        rest = 1.0
        for order, key in (1, (tenant, at.before, at.token)), (0, (tenant, at.token, -1)):
            counts = self._counts.find(key) if at.before >= 0 or order == 0 else None
            if counts is None:
                continue
            begun = {child.token for child in children}
            total = 1 + sum(counts.values())
            for token, count in counts.items():
                kind = len(SHARES) * order + bisect_right(SHARES, rest * count / total) - 1
                chance = at.chance * accepted[kind]
                if token not in begun and chance >= worth:
                    children.append(_Node(token, at, at.token, kind, chance, accepted[kind]))
            rest = rest / total
        return children


def _count(counts: dict[int, int], token: int) -> None:
    if token in counts:
        counts[token] += 1
    elif len(counts) < WIDTH:
        counts[token] = 1
    else:  # the rarest gives way, the last of them
        rarest = min(reversed(counts), key=counts.__getitem__)
        replaced = {
            (token if t == rarest else t): (1 if t == rarest else c) for t, c in counts.items()
        }
        counts.clear()
        counts.update(replaced)
    if sum(counts.values()) >= _MOST_COUNTED:
        for each in counts:
            counts[each] //= 2


def make_trigrams(capacity: int) -> Trigrams:
    """The native counts where the core was built, the plain ones elsewhere."""
    return PlainTrigrams(capacity) if core is None else core.Trigrams(capacity)
