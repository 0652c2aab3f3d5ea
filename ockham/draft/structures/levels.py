"""Trees of guesses that were made for each depth apart: every token of a depth may follow every
token of the depth above."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Guess = tuple[int, int]
"""A token and its kind."""
Grown = tuple[list[int], list[int], list[int]]
"""Tokens, parents (-1 for the root) and kinds."""


def grow(
    levels: Sequence[Sequence[Guess]], accepted: Sequence[float], worth: float, most: int
) -> Grown:
    """The likeliest tree of at most `most` tokens: a token's chance is the product of
    `accepted[kind]` along its path, and none of less than `worth` is taken. Tokens come in the
    order of their chances, the first in its level first on a tie."""
    ranked = [
        sorted(((accepted[kind], token, kind) for token, kind in level), key=lambda one: -one[0])
        for level in levels
    ]
    tokens: list[int] = []
    parents: list[int] = []
    kinds: list[int] = []
    order = 0
    heap: list[tuple[float, int, int, int, int]] = []
    """(-chance, order, depth, place in its level, parent)."""

    def offer(above: float, depth: int, place: int, parent: int) -> None:
        nonlocal order
        if depth < len(ranked) and place < len(ranked[depth]):
            chance = above * ranked[depth][place][0]
            if chance >= worth and chance > 0.0:
                heapq.heappush(heap, (-chance, order, depth, place, parent))
                order += 1

    offer(1.0, 0, 0, -1)
    while heap and len(tokens) < most:
        lost, _, depth, place, parent = heapq.heappop(heap)
        share, token, kind = ranked[depth][place]
        number = len(tokens)
        tokens.append(token)
        parents.append(parent)
        kinds.append(kind)
        offer(-lost / share, depth, place + 1, parent)
        offer(-lost, depth + 1, 0, number)
    return tokens, parents, kinds
