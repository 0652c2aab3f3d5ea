"""A reward balanced search that keeps its branches few in state and diverse in content."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from ockham.core.registry import register
from ockham.core.seams import Problem
from ockham.search.structures.balance import apportioned, softmax, wrong_balance
from ockham.search.structures.scorers import scorer_of
from ockham.search.structures.trees import Node, Tree, TreeAsk, TreeOptions, settled

ALIKE = 0.95
"""Cosine of the words of two steps from which on they count as one: a distance of 0.05."""


class EtsOptions(TreeOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    After each step branches are given up that add more to the state than to the rewards and to
    the variety: `state` weighs the share of all state that is kept, `diverse` the share of
    kinds of steps. Those that are left have children in proportion to e^(score / `balance`),
    `width` together. A step ends with `border`, or after `step` tokens. `scorer` says how good
    a branch is ("likelihood", "confidence", "checker:NAME" or "probe:NAME"), `choose` which
    complete one is the answer (the "best", or of the "vote" of what `extract` reads). `budget`
    is the most tokens of all branches.
    """

    balance: float = 0.2
    state: float = 1.0
    diverse: float = 1.0

    def wrong(self) -> str | None:
        """See `TreeOptions`."""
        return super().wrong() or _wrong(self)


class EtsAsk(TreeAsk, kw_only=True, frozen=True):
    """As in `EtsOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "ets"

    balance: float | None = None
    state: float | None = None
    diverse: float | None = None

    def wrong(self) -> str | None:
        """See `TreeAsk`."""
        return super().wrong() or _wrong(self)


def _wrong(settings: EtsOptions | EtsAsk) -> str | None:
    if (said := wrong_balance(settings.balance)) is not None:
        return said
    for name, weight in (("state", settings.state), ("diverse", settings.diverse)):
        if weight is not None and not 0.0 <= weight <= 1e3:
            return f"{name} must lie in [0, 1000], got {weight}."
    return None


@register("search", "ets", exact=False, books=("ets",))
class Ets:
    """Reward balanced search over those branches that share state and differ in what they say.

    ETS (Hooper et al. 2025, arXiv:2502.13575): of the leaves a set is kept that maximises the sum
    of their shares in REBASE, less `state` times the share of the tree's state that it needs,
    plus `diverse` times the share of clusters of steps that it covers. The paper solves that as
    an integer programme and counts a node as 1; here leaves are taken greedily, each where it
    gains most, and a node counts its tokens. Steps are clustered by the cosine of their words'
    counts, where the paper embeds sentences. A leaf that is kept has the shares of those of its
    cluster that are not: as many children as all of them would have had. The same seed gives the
    same tree, whatever ran beside it. `ockham techniques measure search/ets` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes",)
    name: ClassVar[str] = "ets"
    Options: ClassVar[type[EtsOptions]] = EtsOptions
    Ask: ClassVar[type[EtsAsk]] = EtsAsk

    def __init__(self, options: EtsOptions) -> None:
        self._options = options

    def begin(self, ask: EtsAsk, problem: Problem) -> SparingTree | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        return SparingTree(settings, problem, scorer_of(settings.scorer, problem, self.name))


class SparingTree(Tree):
    """The branches of one request."""

    settings: EtsOptions

    def children(self, open_: Sequence[Node], room: int) -> dict[int, int]:
        """See `Tree`."""
        scores = {node.number: self.found.known[node.number] for node in open_}
        shares = softmax(scores, self.settings.balance)
        clusters = clustered([node.text[node.first :] for node in open_])
        cluster_of = {node.number: each for node, each in zip(open_, clusters, strict=True)}
        kept = self._selected(shares, cluster_of)
        return apportioned(inherited(shares, cluster_of, kept), room)

    def _selected(self, shares: dict[int, float], cluster_of: dict[int, int]) -> list[int]:
        """The leaves that are kept, greedily: each time the one that gains most, while one gains.
        There is at least one."""
        settings = self.settings
        kinds, whole = len(set(cluster_of.values())), max(1, self.retained(list(shares)))
        kept: list[int] = []
        covered, held = set[int](), set[int]()
        left = list(shares)
        while left:
            gains: dict[int, float] = {}
            for number in left:
                cost = sum(self._size(n) for n in self._line(number) if n not in held)
                new = cluster_of[number] not in covered
                gains[number] = (
                    shares[number] - settings.state * cost / whole + settings.diverse * new / kinds
                )
            best = max(left, key=lambda n: (gains[n], shares[n], -n))
            if kept and gains[best] <= 0.0:
                break
            kept.append(best)
            left.remove(best)
            covered.add(cluster_of[best])
            held.update(self._line(best))
        return kept

    def _line(self, number: int) -> list[int]:
        """A branch and all that it begins with."""
        line, at = [], self.nodes[number]
        while True:
            line.append(at.number)
            if at.parent is None:
                return line
            at = self.nodes[at.parent]

    def _size(self, number: int) -> int:
        node = self.nodes[number]
        return node.stop - node.start


def inherited(
    shares: dict[int, float], cluster_of: dict[int, int], kept: list[int]
) -> dict[int, float]:
    """The shares of the leaves that are kept, which sum to 1: those of a cluster have what all its
    leaves had, in proportion to their own."""
    total: dict[int, float] = {}
    own: dict[int, float] = {}
    for number, share in shares.items():
        cluster = cluster_of[number]
        total[cluster] = total.get(cluster, 0.0) + share
        own[cluster] = own.get(cluster, 0.0) + (share if number in kept else 0.0)
    found = {n: shares[n] / own[cluster_of[n]] * total[cluster_of[n]] for n in kept}
    whole = sum(found.values())
    return {number: share / whole for number, share in found.items()}


def clustered(steps: Sequence[str]) -> list[int]:
    """The cluster of each step: that of the first cluster whose first step is alike, else a new
    one."""
    firsts: list[Counter[str]] = []
    found = []
    for step in steps:
        words = Counter(step.split())
        for number, first in enumerate(firsts):
            if _cosine(words, first) >= ALIKE:
                found.append(number)
                break
        else:
            found.append(len(firsts))
            firsts.append(words)
    return found


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    if one == other:
        return 1.0
    dot = sum(count * other[word] for word, count in one.items())
    sizes: Any = math.prod(math.sqrt(sum(n * n for n in each.values())) for each in (one, other))
    return dot / sizes if sizes else 0.0
