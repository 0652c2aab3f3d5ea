"""A particle filter over steps."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ockham.core.registry import register
from ockham.core.seams import Problem
from ockham.search.structures.balance import softmax, wrong_balance
from ockham.search.structures.scorers import scorer_of
from ockham.search.structures.trees import Node, Tree, TreeAsk, TreeOptions, settled

_LEAST = 1e-6
"""Of a score, whose logit must be finite."""


class ParticlesOptions(TreeOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    After each step `width` particles are drawn from the branches, in proportion to e^(logit of
    the score / `balance`). A step ends with `border`, or after `step` tokens. `scorer` says how
    good a branch is ("likelihood", "confidence", "checker:NAME" or "probe:NAME"), `choose`
    which complete one is the answer (the "best", or of the "vote" of what `extract` reads).
    `budget` is the most tokens of all branches.
    """

    width: int = 4
    balance: float = 1.0

    def wrong(self) -> str | None:
        """See `TreeOptions`."""
        return super().wrong() or wrong_balance(self.balance)


class ParticlesAsk(TreeAsk, kw_only=True, frozen=True):
    """As in `ParticlesOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "particles"

    balance: float | None = None

    def wrong(self) -> str | None:
        """See `TreeAsk`."""
        return super().wrong() or wrong_balance(self.balance)


@register("search", "particles", exact=False, books=("particles",))
class Particles:
    """Branches are resampled after each step by how good they look.

    Particle filtering (Puri et al. 2025, arXiv:2502.01618): a branch's weight is a softmax over the
    logits of the scores. Here resampling is systematic, which of few particles loses fewer by
    chance; its one random number is a hash of what the branches have said, so that the same seed
    gives the same tree, whatever ran beside it. What is complete is not resampled. `ockham
    techniques measure search/particles` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "particles"
    Options: ClassVar[type[ParticlesOptions]] = ParticlesOptions
    Ask: ClassVar[type[ParticlesAsk]] = ParticlesAsk

    def __init__(self, options: ParticlesOptions) -> None:
        self._options = options

    def begin(self, ask: ParticlesAsk, problem: Problem) -> ParticleTree | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        return ParticleTree(settings, problem, scorer_of(settings.scorer, problem, self.name))


class ParticleTree(Tree):
    """The branches of one request."""

    settings: ParticlesOptions

    def children(self, open_: Sequence[Node], room: int) -> dict[int, int]:
        """See `Tree`."""
        scores = {node.number: self.found.known[node.number] for node in open_}
        logits = {n: _logit(score) for n, score in scores.items()}
        said = "\0".join(node.text for node in open_)
        start = zlib.crc32(said.encode(errors="replace")) / 2**32
        return resampled(softmax(logits, self.settings.balance), room, start)


def _logit(score: float) -> float:
    inside = min(1.0 - _LEAST, max(_LEAST, score))
    return math.log(inside / (1.0 - inside))


def resampled(shares: dict[int, float], count: int, start: float) -> dict[int, int]:
    """Systematic resampling: how many of `count` evenly spaced points, the first at `start` of a
    spacing, fall into each share."""
    numbers = list(shares)
    ends = np.cumsum([shares[number] for number in numbers])
    points = (np.arange(count) + start) / count
    places = np.minimum(np.searchsorted(ends, points, side="right"), len(numbers) - 1)
    counts = np.bincount(places, minlength=len(numbers)).tolist()
    return dict(zip(numbers, counts, strict=True))
