"""Votes of paths that count as much as they are probable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ockham.core.arrays import Doubles
from ockham.core.registry import register
from ockham.core.seams import Branch, Problem
from ockham.search.structures.samples import (
    SampleOptions,
    Samples,
    SamplesAsk,
    settled,
    votes_told,
)
from ockham.search.structures.tally import weigh

SHARE_LEAST, SHARE_MOST = 0.2, 0.8
"""Between which the share of probable paths is looked for, as in the authors' code."""
FIT_LEAST = 4
"""Of fewer distinct paths no mixture is fitted."""


class RpcOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `samples` are drawn, `parallel` at once. `prune` says whether improbable paths are left out.
    `certain` is the share of the weight of all paths at which no more are drawn; 1 draws all.
    `extract` says what of a text is its answer, `budget` is the most tokens of all samples.
    """

    samples: int = 8
    prune: bool = True
    certain: float = 1.0

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return super().wrong() or _wrong(self.certain)


class RpcAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `RpcOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "rpc"

    prune: bool | None = None
    certain: float | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return super().wrong() or _wrong(self.certain)


def _wrong(certain: float | None) -> str | None:
    if certain is not None and not 0.5 < certain <= 1.0:
        return f"certain must be above 0.5 and at most 1, got {certain}."
    return None


@register("search", "rpc", exact=False, books=("rpc",))
class Rpc:
    """The answer whose distinct paths have most probability together, improbable ones left out.

    RPC (Zhou et al. 2025, arXiv:2502.00511). Perplexity consistency: an answer weighs the sum of
    the probabilities of the distinct samples that give it, where self-consistency counts samples.
    Reasoning pruning: two Weibull distributions are fitted to the probabilities, and a path that
    rather belongs to the lower one, and lies below the mean, does not count. A path's probability
    is here the geometric mean of its tokens', e to the power of the mean log probability, as the
    product of hundreds of tokens leaves one path all the weight. The same seed gives the same
    answer, whatever ran beside it. `ockham techniques measure search/rpc` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "rpc"
    Options: ClassVar[type[RpcOptions]] = RpcOptions
    Ask: ClassVar[type[RpcAsk]] = RpcAsk

    def __init__(self, options: RpcOptions) -> None:
        self._options = options

    def begin(self, ask: RpcAsk, problem: Problem) -> Paths | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        return None if settings is None else Paths(settings, problem)


class Paths(Samples):
    """The samples of one request so far. They count in their order: one that ends early waits for
    those before it."""

    scores: ClassVar[bool] = True
    settings: RpcOptions

    def __init__(self, settings: RpcOptions, problem: Problem) -> None:
        super().__init__(settings, problem)
        self._chances: dict[int, float] = {}
        """The probability of each path that is the first to say what it says."""
        self._said: dict[int, tuple[int, ...]] = {}
        self._counted = 0
        self._known: set[tuple[int, ...]] = set()

    def take(self, number: int, branch: Branch) -> bool:
        """See `Samples`."""
        self._said[number] = tuple(branch.tokens)
        logprobs = branch.scores.logprobs
        self._chances[number] = math.exp(sum(logprobs) / max(1, len(logprobs)))
        return super().take(number, branch)

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        while self._counted in self.answers:
            said = self._said[self._counted]
            if said in self._known:
                del self._chances[self._counted]
            self._known.add(said)
            self._counted += 1
            totals = list(weigh(self.answers, self._weights()).values())
            # One answer alone is no majority yet.
            enough = self._counted > 2 and self.settings.certain < 1.0 and totals
            if enough and totals[0] >= self.settings.certain * sum(totals):
                return "confidence"
        return "samples" if self._counted >= self.settings.samples else None

    def ranked(self) -> list[int]:
        """See `Samples`: of each answer the most probable path."""
        weights = self._weights()
        best = [
            max((n for n in weights if self.answers[n] == each), key=lambda n: (weights[n], -n))
            for each in weigh(self.answers, weights)
        ]
        rest = sorted(n for n in self.answers if n not in best)
        return [*best, *sorted(rest, key=lambda n: (-self._chances.get(n, 0.0), n))]

    def counted(self) -> list[int]:
        """See `Samples`."""
        return list(range(self._counted)) or sorted(self.answers)

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        weights = self._weights()
        told = votes_told(
            {a: round(w, 6) for a, w in weigh(self.answers, weights).items()},
            sum(self.answers[n] is None for n in range(self._counted)),
        )
        return {
            **told,
            "distinct": len(self._known),
            "pruned": sum(n in self._chances for n in range(self._counted)) - len(weights),
        }

    def _weights(self) -> dict[int, float]:
        """The probability of each distinct path that counts."""
        numbers = [n for n in range(self._counted) if n in self._chances]
        chances = np.array([self._chances[n] for n in numbers])
        kept = probable(chances) if self.settings.prune else np.ones(len(numbers), np.bool_)
        return {n: self._chances[n] for n, keeps in zip(numbers, kept, strict=True) if keeps}


def probable(chances: Doubles) -> Any:
    """Which of the probabilities (n,) of distinct paths are kept: (n,) booleans.

    A mixture of two Weibull distributions is fitted by maximum likelihood (expectation and
    maximisation, from the halves below and above the median), the share of the upper one bounded to
    [0.2, 0.8]. A path is left out that is more probably of the lower one, and lies below the mean.
    All are kept of fewer than 4, or where they hardly differ.
    """
    if len(chances) < FIT_LEAST or np.ptp(chances) < 1e-9 * chances.max():
        return np.ones(len(chances), np.bool_)
    x = np.maximum(chances / chances.max(), 1e-12)  # a Weibull distribution scales with its values
    above = (x > np.median(x)).astype(np.float64)
    upper = np.clip(above, 0.1, 0.9)  # how much each belongs to the upper one
    for _ in range(50):
        share = float(np.clip(upper.mean(), SHARE_LEAST, SHARE_MOST))
        high = share * _density(x, *_fit(x, upper))
        low = (1.0 - share) * _density(x, *_fit(x, 1.0 - upper))
        new = high / np.maximum(high + low, 1e-300)
        done = np.abs(new - upper).max() < 1e-6
        upper = new
        if done:
            break
    kept = (upper >= 0.5) | (x >= x.mean())
    return kept if kept.any() else np.ones(len(chances), np.bool_)


def _fit(x: Doubles, weights: Doubles) -> tuple[float, float]:
    """Shape and scale of the Weibull distribution that is likeliest of weighted values (n,) of at
    most 1, by Newton's steps on the equation of the shape."""
    weights = np.maximum(weights, 1e-6)
    total, logs = float(weights.sum()), np.log(x)
    mean_log = float((weights * logs).sum()) / total
    shape = 1.2 / max(1e-2, float(np.sqrt((weights * (logs - mean_log) ** 2).sum() / total)))
    for _ in range(30):
        powers = weights * np.exp(shape * (logs - logs.max()))
        a, b, c = (float((powers * logs**k).sum()) for k in range(3))
        value = b / a - 1.0 / shape - mean_log
        slope = (c * a - b * b) / (a * a) + 1.0 / shape**2
        step = value / slope
        shape = min(200.0, max(1e-2, shape - step))
        if abs(step) < 1e-9 * shape:
            break
    powers = weights * np.exp(shape * (logs - logs.max()))
    return shape, float((float(powers.sum()) / total) ** (1.0 / shape) * np.exp(logs.max()))


def _density(x: Doubles, shape: float, scale: float) -> Doubles:
    """Of a Weibull distribution."""
    z = x / scale
    density: Doubles = shape / scale * z ** (shape - 1.0) * np.exp(-np.minimum(z**shape, 700.0))
    return density
