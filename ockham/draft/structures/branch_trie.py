"""How runs of tokens went on before, in every text of a tenant: a bounded trie.

`PlainTrie` is the plain twin of csrc/drafts/branch_trie.h, which decides everything as it does.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ockham.core.arrays import Ints
from ockham.kernels.native import core

DEEPEST = 12
"""Tokens of a branch: those that are matched, and those that are drafted."""
LENGTHS = (1, 2, 3, 4, 6, 9)
"""Tokens matched at which a kind begins."""
SHARES = (0.0, 0.1, 0.25, 0.45, 0.6, 0.8)
"""Shares of a continuation at which a kind begins."""
NODE_BYTES = 32 + 4 * 4
"""Of the native trie, with its table when that has just grown."""
_MOST_USES = 3
_MOST_COUNT = 1 << 30
_LOOKED_AT = 8
"""Children of a node, the latest used."""
_LEAST_ESCAPE = 0.02
_AGAIN = (8, 4, 2)
"""Lengths of the match where a branch ends."""

Drafted = tuple[list[int], list[int], list[int]]
"""Tokens, parents (-1 for the root) and kinds."""


class Trie(Protocol):
    """Every run of up to `DEEPEST` tokens of the texts that cursors have read, with how often.

    There are at most `capacity` nodes: when they are all taken, a leaf leaves that was not used for
    long, where each use of a node saves it once, up to three times (a clock)."""

    def open(self, tenant: int) -> Any:
        """A cursor at the beginning of a text. Tenants see nothing of each other."""
        ...

    def extend(self, cursor: Any, tokens: Ints) -> None:
        """The next tokens of a cursor's text."""
        ...

    def propose(self, cursor: Any, most: int, accepted: Sequence[float], worth: float) -> Drafted:
        """At most `most` tokens, the likeliest first, whose chance is at least `worth`.

        What followed the longest match is offered first; a shorter match has what its share leaves
        over for it (the escape of prediction by partial matching). A token's kind is made of the
        length of its match and of its share among what followed: its number is
        `len(SHARES) * length + share`, both as indices into `LENGTHS` and `SHARES`."""
        ...

    def records(self) -> Any:
        """Ints (nodes, 4): parent's record (-1 for none), token, count and uses of each node."""
        ...

    def restore(self, records: Ints) -> None:
        """Make an empty trie what another one was. Raises ValueError for what is none."""
        ...

    @property
    def size(self) -> int:
        """Nodes."""
        ...

    @property
    def bytes(self) -> int: ...


class _Node:
    __slots__ = ("birth", "children", "count", "depth", "parent", "token", "uses")

    def __init__(self, parent: int, token: int, depth: int, birth: int) -> None:
        self.parent, self.token, self.depth, self.birth = parent, token, depth, birth
        self.children: list[int] = []
        """The latest used last."""
        self.count = self.uses = 0


class PlainCursor:
    """The nodes of a text's last 0, 1, ... tokens, each with its birth."""

    def __init__(self, tenant: int) -> None:
        self.tenant = tenant
        self.places: list[tuple[int, int]] = [(-1, 0)] * (DEEPEST + 1)
        self.recent: list[int] = []


class PlainTrie:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._nodes = [_Node(-1, -1, 0, 0)]
        self._found: dict[tuple[int, int], int] = {}
        self._hand = 1
        self._births = 0

    @property
    def size(self) -> int:
        return len(self._nodes) - 1

    @property
    def bytes(self) -> int:
        return 400 * len(self._nodes)

    def open(self, tenant: int) -> PlainCursor:
        return PlainCursor(tenant)

    def extend(self, cursor: PlainCursor, tokens: Ints) -> None:
        places = cursor.places
        for token in tokens.tolist():
            root = self._make(0, cursor.tenant)
            self._nodes[root].uses = _MOST_USES
            places[0] = (root, self._nodes[root].birth)
            for length in range(DEEPEST, 0, -1):
                if not self._valid(places[length - 1]):
                    places[length] = (-1, 0)
                    continue
                node = self._make(places[length - 1][0], token)
                self._touch(node)
                places[length] = (node, self._nodes[node].birth)
            cursor.recent = [*cursor.recent, token][-DEEPEST:]

    def propose(
        self, cursor: PlainCursor, most: int, accepted: Sequence[float], worth: float
    ) -> Drafted:
        tokens: list[int] = []
        parents: list[int] = []
        kinds: list[int] = []
        offers: list[tuple[float, int, int, int, int, int]] = []
        serial = 0

        def offer(number: int, above: float, escape: float, parent: int, begun: set[int]) -> float:
            nonlocal serial
            here = self._nodes[number]
            looked = [self._nodes[child] for child in here.children[: -_LOOKED_AT - 1 : -1]]
            total = float(max(sum(node.count for node in looked), here.count - 1)) + 1.0
            for child, node in zip(here.children[::-1], looked, strict=False):
                if node.token in begun:
                    continue
                begun.add(node.token)
                kind = _kind(here.depth, escape * node.count / total)
                chance = above * accepted[kind]
                if chance >= worth:
                    heapq.heappush(offers, (-chance, serial, node.token, parent, kind, child))
                    serial += 1
            return escape / total

        escape = 1.0
        begun: set[int] = set()
        for length in range(DEEPEST - 1, 0, -1):
            if escape < _LEAST_ESCAPE:
                break
            place = cursor.places[length]
            if self._valid(place) and self._nodes[place[0]].children:
                escape = offer(place[0], 1.0, escape, -1, begun)
        while offers and len(tokens) < most:
            chance, _, token, parent, kind, node = heapq.heappop(offers)
            number = len(tokens)
            tokens.append(token)
            parents.append(parent)
            kinds.append(kind)
            following: int | None = node
            if not self._nodes[node].children:
                path = []
                while number >= 0:
                    path.append(tokens[number])
                    number = parents[number]
                following = self._elsewhere(cursor.tenant, [*cursor.recent, *path[::-1]])
            if following is not None:
                offer(following, -chance, 1.0, len(tokens) - 1, set())
        return tokens, parents, kinds

    def records(self) -> Ints:
        found: list[tuple[int, int, int, int]] = []
        opened = [(0, -1)]
        while opened:
            number, record = opened.pop()
            for child in self._nodes[number].children:
                node = self._nodes[child]
                opened.append((child, len(found)))
                found.append((record, node.token, node.count, node.uses))
        return np.array(found, np.int32).reshape(-1, 4)

    def restore(self, records: Ints) -> None:
        if self.size:
            raise ValueError("the trie is not empty.")
        if len(records) > self._capacity:
            raise ValueError("it has more nodes than there is room for.")
        for i, (record, token, count, uses) in enumerate(records.tolist()):
            if not -1 <= record < i or token < 0 or count < 0 or not 0 <= uses <= _MOST_USES:
                raise ValueError("a node is out of range.")
            if record >= 0 and self._nodes[record + 1].depth >= DEEPEST:
                raise ValueError("a branch is too long.")
            if (record + 1, token) in self._found:
                raise ValueError("a node stands there twice.")
            node = self._nodes[self._make(record + 1, token)]
            node.count, node.uses = count, uses

    # -- inside --------------------------------------------------------------------------------

    def _valid(self, place: tuple[int, int]) -> bool:
        return place[0] >= 0 and self._nodes[place[0]].birth == place[1]

    def _make(self, parent: int, token: int) -> int:
        found = self._found.get((parent, token))
        if found is not None:
            return found
        number = self._allocate(parent)
        self._births += 1
        depth = 0 if parent == 0 else self._nodes[parent].depth + 1
        self._nodes[number] = _Node(parent, token, depth, self._births)
        self._nodes[parent].children.append(number)
        self._found[parent, token] = number
        return number

    def _allocate(self, parent: int) -> int:
        if len(self._nodes) <= self._capacity:
            self._nodes.append(self._nodes[0])
            return len(self._nodes) - 1
        while True:
            if self._hand == len(self._nodes):
                self._hand = 1
            number, node = self._hand, self._nodes[self._hand]
            self._hand += 1
            if node.uses:
                node.uses -= 1
            elif not node.children and number != parent:
                self._nodes[node.parent].children.remove(number)
                del self._found[node.parent, node.token]
                return number

    def _touch(self, number: int) -> None:
        node = self._nodes[number]
        node.count = min(_MOST_COUNT, node.count + 1)
        node.uses = min(_MOST_USES, node.uses + 1)
        siblings = self._nodes[node.parent].children
        siblings.remove(number)
        siblings.append(number)

    def _elsewhere(self, tenant: int, path: list[int]) -> int | None:
        """A node of the last tokens of a path that has children."""
        path = path[-DEEPEST:]
        for length in _AGAIN:
            if length > len(path):
                continue
            node = self._found.get((0, tenant))
            for token in path[-length:]:
                node = None if node is None else self._found.get((node, token))
            if node is not None and self._nodes[node].children:
                return node
        return None


def _kind(length: int, share: float) -> int:
    return len(SHARES) * (bisect_right(LENGTHS, length) - 1) + bisect_right(SHARES, share) - 1


def make_trie(capacity: int) -> Trie:
    """The native trie where the core was built, the plain one elsewhere."""
    return PlainTrie(capacity) if core is None else core.BranchTrie(capacity)
