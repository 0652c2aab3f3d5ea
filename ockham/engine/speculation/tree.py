"""Draft trees: what several drafters propose for a sequence, merged, and what is verified of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ockham.core.seams import Draft

ROOT = -1
"""The parent of a tree's first tokens: the sequence's last one."""
Source = tuple[int, int]
"""Which drafter proposed a token, and as which of its kinds."""


@dataclass(slots=True)
class Tree:
    """Tokens to verify: `parents[i]` is below i, `ROOT` for those that may come next.

    `chances[i]` is the chance that token i and all its ancestors are accepted; `sources[i]` who
    proposed it.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    sources: list[list[Source]] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    """(parent, token) -> number."""
    certain: int = 0
    """How many tokens at the beginning, a chain, will come whatever the model says."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def leading(self) -> int:
        """How many tokens at the beginning are a chain."""
        for i, parent in enumerate(self.parents):
            if parent != i - 1:
                return i
        return len(self.parents)

    def path(self, number: int) -> list[int]:
        """A token's ancestors and itself, from the root on."""
        path = []
        while number != ROOT:
            path.append(number)
            number = self.parents[number]
        return path[::-1]

    def marks_after(self, number: int) -> list[int]:
        """The marks that follow one after the other on a token, or on the sequence's last one."""
        found: list[int] = []
        for mark, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if token < 0 and parent == (found[-1] if found else number):
                found.append(mark)
        return found

    @property
    def drafted(self) -> int:
        """How many of its tokens are no marks."""
        return sum(token >= 0 for token in self.tokens)

    def add(self, draft: Draft, drafter: int, accepted: Sequence[float], worth: float) -> None:
        """Take in what a drafter proposes, but for what is not worth it. Where another one proposed
        the same, the better of the two chances counts."""
        own: list[int | None] = []
        for token, parent, kind in zip(draft.tokens, draft.parents, draft.kinds, strict=True):
            above = ROOT if parent < 0 else own[parent]
            chance = 0.0 if above is None else accepted[kind]
            if above is not None and above != ROOT:
                chance *= self.chances[above]
            if above is None or chance < worth:
                own.append(None)
                continue
            number = self.children.get((above, token))
            if number is None:
                number = self._grow(token, above)
            self.chances[number] = max(self.chances[number], chance)
            self.sources[number].append((drafter, kind))
            own.append(number)

    def _grow(self, token: int, parent: int) -> int:
        number = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
        self.chances.append(0.0)
        self.sources.append([])
        self.children[parent, token] = number
        return number

    def best(self, most: int) -> Tree:
        """The tree of the `most` likeliest tokens: all branches together have no more cells than
        the sequence has left."""
        if len(self.tokens) <= most:
            return self
        ranked = sorted(range(len(self.tokens)), key=lambda number: -self.chances[number])
        return self.pruned(ranked[:most])

    def joined(self, depth: int) -> Tree:
        """The tree whose branches end before `depth`, but for the likeliest one, which leads."""
        if max(self.depths, default=0) < depth:
            return self
        path: list[int] = []
        above = ROOT
        while below := [number for number, own in enumerate(self.parents) if own == above]:
            above = max(below, key=self.chances.__getitem__)
            path.append(above)
        beside = [number for number, own in enumerate(self.depths) if own < depth]
        return self._of([*path, *(number for number in beside if number not in path)])

    def pruned(self, numbers: list[int]) -> Tree:
        """The tree of these tokens only, which hold the parents of each of them."""
        return self if len(numbers) == len(self.tokens) else self._of(sorted(numbers))

    def _of(self, numbers: list[int]) -> Tree:
        """The tree of these tokens in this order, each after its parent."""
        tree = Tree(certain=sum(number < self.certain for number in numbers))
        place = {ROOT: ROOT}
        for number in numbers:
            grown = tree._grow(self.tokens[number], place[self.parents[number]])
            tree.chances[grown] = self.chances[number]
            tree.sources[grown] = self.sources[number]
            place[number] = grown
        return tree


def choose(trees: list[Tree], rows: int, room: int, cost: Sequence[float]) -> list[Tree]:
    """The parts of the trees that bring the most tokens for a step's time.

    A step of `rows` rows without drafts gives a token for each of `rows` sequences; a drafted token
    adds its chance to that, and its row to the step, which then takes `cost[drafted]`. Tokens are
    taken in the order of their chances, so that a parent comes before its children, and of all the
    numbers of them up to `room` the one with the best goodput is taken (SmartSpec, Liu et al. 2024,
    arXiv:2406.14066). What is certain is always taken, because its rows are needed in any case.
    `cost` has at least `room + 1` values.
    """
    ranked = sorted(
        (
            (number >= tree.certain, -chance, which, number)
            for which, tree in enumerate(trees)
            for number, chance in enumerate(tree.chances)
        ),
    )[:room]
    best, best_goodput, expected = 0, rows / cost[0], float(rows)
    for taken, (risky, chance, _, _) in enumerate(ranked, 1):
        expected -= chance
        if not risky or expected > best_goodput * cost[taken]:
            best, best_goodput = taken, expected / cost[taken]
    chosen: list[list[int]] = [[] for _ in trees]
    for _, _, which, number in ranked[:best]:
        chosen[which].append(number)
    return [tree.pruned(numbers) for tree, numbers in zip(trees, chosen, strict=True)]
