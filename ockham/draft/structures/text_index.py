"""Texts whose continuations are looked up by what was said last.

`PlainTextIndex` is the plain twin of csrc/drafts/text_index.h, which decides everything as it does.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ockham.core.arrays import Ints
from ockham.kernels.native import core

LONGEST, LEAST = 12, 2
"""Tokens of a match."""
COMPARED = 24
"""Tokens by which places are ordered."""
LOOKED_AT = 32
"""Places of a range whose next tokens are looked at."""
BRANCHES = 4
FEW = 8
"""Places below which a shorter match is asked too."""
LENGTHS, TOTALS, SHARES = (4, 7), (2, 4, 16), (0.25, 0.5, 0.8)
"""Edges of the kinds: by the length of what matched, by how often it was found, and by the share of
these places that goes on so."""

Drafted = tuple[list[int], list[int], list[int]]
"""Tokens, parents (-1 for the root) and kinds."""


class TextIndex(Protocol):
    """Texts one after another, a negative token after each, whose places are in order."""

    def propose(self, last: Ints, most: int, accepted: Sequence[float], worth: float) -> Drafted:
        """What followed the longest match with the end of `last` that was found, and the shorter
        one that was found `FEW` times, as a tree of at most `most` tokens. A token's chance is the
        product of `accepted[kind]` along its path; none of less than `worth` is taken."""
        ...

    @property
    def bytes(self) -> int: ...


def order_of(tokens: Ints) -> Ints:
    """All places of some texts, sorted by the `COMPARED` tokens from there on, then by place."""
    if core is not None:
        return np.asarray(core.TextIndex.order_of(tokens))
    texts = tokens.tolist()
    places = sorted(range(len(texts)), key=lambda place: (texts[place : place + COMPARED], place))
    return np.array(places, np.int32)


def make_text_index(tokens: Ints, order: Ints) -> TextIndex:
    """The native index, or its plain twin where there is no native core."""
    return PlainTextIndex(tokens, order) if core is None else core.TextIndex(tokens, order)


class PlainTextIndex:
    """See `TextIndex`."""

    def __init__(self, tokens: Ints, order: Ints) -> None:
        self._tokens, self._order = tokens.tolist(), order.tolist()

    @property
    def bytes(self) -> int:
        return 8 * len(self._tokens)

    def propose(self, last: Ints, most: int, accepted: Sequence[float], worth: float) -> Drafted:
        said = last.tolist()
        tokens: list[int] = []
        parents: list[int] = []
        kinds: list[int] = []
        found = {
            length: self._starting_with(said[len(said) - length :])
            for length in range(LEAST, min(LONGEST, len(said)) + 1)
        }
        lengths = [length for length, (first, end) in found.items() if first < end]
        if not lengths:
            return tokens, parents, kinds
        heap: list[tuple[float, int, int, int, int, int, tuple[int, int]]] = []
        offered: set[int] = set()
        serial = 0

        def offer(within: tuple[int, int], offset: int, above: float, parent: int) -> None:
            nonlocal serial
            if offset >= COMPARED:
                return
            for token, own in self._following(within, offset):
                if parent < 0:
                    if token in offered:
                        continue
                    offered.add(token)
                kind = kind_of(offset, within[1] - within[0], own[1] - own[0])
                chance = above * accepted[kind]
                if chance >= worth:
                    heapq.heappush(heap, (-chance, serial, token, parent, kind, offset, own))
                    serial += 1

        longest = lengths[-1]
        offer(found[longest], longest, 1.0, -1)
        if found[longest][1] - found[longest][0] < FEW:
            shorter = [n for n in range(LEAST, longest) if found[n][1] - found[n][0] >= FEW]
            if longest > LEAST:
                use = shorter[-1] if shorter else LEAST
                offer(found[use], use, 1.0, -1)
        while heap and len(tokens) < most:
            lost, _, token, parent, kind, offset, own = heapq.heappop(heap)
            tokens.append(token)
            parents.append(parent)
            kinds.append(kind)
            offer(own, offset + 1, -lost, len(tokens) - 1)
        return tokens, parents, kinds

    def _at(self, place: int, offset: int) -> int:
        index = self._order[place] + offset
        return self._tokens[index] if index < len(self._tokens) else -1

    def _starting_with(self, pattern: list[int]) -> tuple[int, int]:
        def begins(place: int) -> list[int]:
            return [self._at(place, i) for i in range(len(pattern))]

        places = range(len(self._order))
        return bisect_left(places, pattern, key=begins), bisect_right(places, pattern, key=begins)

    def _following(self, within: tuple[int, int], offset: int) -> list[tuple[int, tuple[int, int]]]:
        """The tokens that come most often at an offset of a range, with their own ranges."""
        first, size = within[0], within[1] - within[0]
        looks = min(LOOKED_AT, size)
        seen = Counter(self._at(first + look * size // looks, offset) for look in range(looks))
        seen.pop(-1, None)
        most = sorted(seen, key=lambda token: (-seen[token], token))[:BRANCHES]
        places = range(*within)
        return [
            (
                token,
                (
                    first + bisect_left(places, token, key=lambda place: self._at(place, offset)),
                    first + bisect_right(places, token, key=lambda place: self._at(place, offset)),
                ),
            )
            for token in most
        ]


def kind_of(length: int, total: int, count: int) -> int:
    """The kind of a token that follows `count` of `total` places that match in so many tokens."""
    by_length, by_total = bisect_right(LENGTHS, length), bisect_right(TOTALS, total)
    quarters = (4 * count < total, 2 * count < total, 5 * count < 4 * total)
    by_share = 3 - sum(quarters)
    return (by_length * (len(TOTALS) + 1) + by_total) * (len(SHARES) + 1) + by_share


def kind_shares() -> tuple[float, ...]:
    """Of each kind, what is accepted as long as nothing better is known: close to the share of the
    places, less where they are few and matched in little."""
    by_share, by_total, by_length = (0.1, 0.3, 0.55, 0.85), (0.6, 0.75, 0.9, 1.0), (0.7, 0.85, 1.0)
    return tuple(s * t * n for n in by_length for t in by_total for s in by_share)
