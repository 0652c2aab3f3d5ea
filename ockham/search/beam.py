"""A beam search over steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.errors import InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Problem
from ockham.search.structures.scorers import scorer_of
from ockham.search.structures.trees import Node, Tree, TreeAsk, TreeOptions, settled


class BeamOptions(TreeOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    After each step the best `beams` branches go on, each with as many children, `width`
    together. A step ends with `border`, or after `step` tokens. `scorer` says how good a branch
    is ("likelihood", "confidence", "checker:NAME" or "probe:NAME"), `choose` which complete one
    is the answer (the "best", or of the "vote" of what `extract` reads). `budget` is the most
    tokens of all branches.
    """

    beams: int = 2

    def wrong(self) -> str | None:
        """See `TreeOptions`."""
        return super().wrong() or _wrong(self.beams)


class BeamAsk(TreeAsk, kw_only=True, frozen=True):
    """As in `BeamOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "beam"

    beams: int | None = None

    def wrong(self) -> str | None:
        """See `TreeAsk`."""
        return super().wrong() or _wrong(self.beams)


def _wrong(beams: int | None) -> str | None:
    return f"beams must be at least 1, got {beams}." if beams is not None and beams < 1 else None


@register("search", "beam", exact=False, books=("beam",))
class Beam:
    """The best few branches go on after each step, with several children each.

    Beam search over steps with a scorer (Snell et al. 2024, arXiv:2408.03314, section 5.2). The
    same seed gives the same tree, whatever ran beside it. `ockham techniques measure search/beam`
    measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "beam"
    Options: ClassVar[type[BeamOptions]] = BeamOptions
    Ask: ClassVar[type[BeamAsk]] = BeamAsk

    def __init__(self, options: BeamOptions) -> None:
        self._options = options

    def begin(self, ask: BeamAsk, problem: Problem) -> BeamTree | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        if settings.beams > settings.width:
            raise InvalidRequest(
                f"beam: {settings.beams} beams are more than the width of {settings.width}."
            )
        return BeamTree(settings, problem, scorer_of(settings.scorer, problem, self.name))


class BeamTree(Tree):
    """The branches of one request."""

    settings: BeamOptions

    def children(self, open_: Sequence[Node], room: int) -> dict[int, int]:
        """See `Tree`."""
        best = sorted(open_, key=lambda node: (-self.found.known[node.number], node.number))
        best = best[: min(self.settings.beams, room)]
        each, more = divmod(room, len(best))
        return {node.number: each + (place < more) for place, node in enumerate(best)}
