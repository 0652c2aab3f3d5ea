"""A search in which branches have children in proportion to their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import Problem
from ockham.search.structures.balance import apportioned, softmax, wrong_balance
from ockham.search.structures.scorers import scorer_of
from ockham.search.structures.trees import Node, Tree, TreeAsk, TreeOptions, settled


class RebaseOptions(TreeOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    After each step branches have children in proportion to e^(score / `balance`), `width`
    together. A step ends with `border`, or after `step` tokens. `scorer` says how good a branch
    is ("likelihood", "confidence", "checker:NAME" or "probe:NAME"), `choose` which complete one
    is the answer (the "best", or of the "vote" of what `extract` reads). `budget` is the most
    tokens of all branches.
    """

    balance: float = 0.2

    def wrong(self) -> str | None:
        """See `TreeOptions`."""
        return super().wrong() or wrong_balance(self.balance)


class RebaseAsk(TreeAsk, kw_only=True, frozen=True):
    """As in `RebaseOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "rebase"

    balance: float | None = None

    def wrong(self) -> str | None:
        """See `TreeAsk`."""
        return super().wrong() or wrong_balance(self.balance)


@register("search", "rebase", exact=False, books=("rebase",))
class Rebase:
    """Branches have children in proportion to their rewards, without rollouts.

    REBASE, reward balanced search (Wu et al. 2024, arXiv:2408.00724): a softmax over the scores at
    temperature 0.2 says how many children each branch has; what is complete keeps its place. The
    same seed gives the same tree, whatever ran beside it. `ockham techniques measure search/rebase`
    measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "rebase"
    Options: ClassVar[type[RebaseOptions]] = RebaseOptions
    Ask: ClassVar[type[RebaseAsk]] = RebaseAsk

    def __init__(self, options: RebaseOptions) -> None:
        self._options = options

    def begin(self, ask: RebaseAsk, problem: Problem) -> BalancedTree | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        return BalancedTree(settings, problem, scorer_of(settings.scorer, problem, self.name))


class BalancedTree(Tree):
    """The branches of one request."""

    settings: RebaseOptions

    def children(self, open_: Sequence[Node], room: int) -> dict[int, int]:
        """See `Tree`."""
        scores = {node.number: self.found.known[node.number] for node in open_}
        return apportioned(softmax(scores, self.settings.balance), room)
