"""Samples that are given up where the model is not sure of what it says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from ockham.core.errors import InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Branch, Problem
from ockham.search.structures.samples import (
    SampleOptions,
    Samples,
    SamplesAsk,
    settled,
    votes_told,
    wrong_samples,
)
from ockham.search.structures.tally import weigh

MOST_WINDOW = 1 << 16


class DeepConfOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    The first `warmup` of the `samples` are complete before the others begin. The confidence of a
    sample is that of its least sure `window` of tokens. The threshold is such that `keep` of the
    first samples lie at or above it; a later one is given up where its window falls below. Answers
    are weighed by confidence, and those of first samples below the threshold do not count.
    `certain` is the share of all weight at which no more are begun. `extract` says what of a text
    is its answer, `budget` is the most tokens of all samples.
    """

    warmup: int = 4
    window: int = 16
    keep: float = 0.9
    certain: float = 0.95

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return wrong_samples(self) or _wrong(self)


class DeepConfAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `DeepConfOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "deepconf"

    warmup: int | None = None
    window: int | None = None
    keep: float | None = None
    certain: float | None = None

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return wrong_samples(self) or _wrong(self)


def _wrong(settings: DeepConfOptions | DeepConfAsk) -> str | None:
    warmup, window = settings.warmup, settings.window
    if warmup is not None and warmup < 2:  # one alone is always of one mind
        return f"warmup must be at least 2, got {warmup}."
    if window is not None and not 1 <= window <= MOST_WINDOW:
        return f"window must lie in [1, {MOST_WINDOW}], got {window}."
    for name, share in (("keep", settings.keep), ("certain", settings.certain)):
        if share is not None and not 0.0 < share <= 1.0:
            return f"{name} must be above 0 and at most 1, got {share}."
    return None


@register("search", "deepconf", exact=False, books=("deepconf",))
class DeepConf:
    """Samples are given up where a window of their tokens is less sure than the first samples were.

    DeepConf (Fu et al. 2025, arXiv:2508.15260): a token's confidence is minus the mean log
    probability of the 20 likeliest tokens. The first samples are drawn whole, and the threshold is
    the percentile of their least sure windows that keeps 90% (the paper's "high"; 10% is its
    "low"). Later samples stop at the first window below it and do not vote; the others vote with
    the confidence of their least sure window. What a sample says decides where it stops, so the
    same seed gives the same answer, whatever ran beside it. `ockham techniques measure
    search/deepconf` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "deepconf"
    Options: ClassVar[type[DeepConfOptions]] = DeepConfOptions
    Ask: ClassVar[type[DeepConfAsk]] = DeepConfAsk

    def __init__(self, options: DeepConfOptions) -> None:
        self._options = options

    def begin(self, ask: DeepConfAsk, problem: Problem) -> ConfidentSamples | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        if settings is None:
            return None
        if settings.warmup > settings.samples:
            raise InvalidRequest(
                f"deepconf: the first {settings.warmup} of {settings.samples} samples set the "
                "threshold; lower warmup, or raise samples."
            )
        return ConfidentSamples(settings, problem)


class ConfidentSamples(Samples):
    """The samples of one request so far. They count in their order: one that ends early waits for
    those before it."""

    scores: ClassVar[bool] = True
    settings: DeepConfOptions

    def __init__(self, settings: DeepConfOptions, problem: Problem) -> None:
        super().__init__(settings, problem)
        self._windows: dict[int, Window] = {}
        self._threshold: float | None = None
        self._weights: dict[int, float] = {}
        self._counted = 0

    @property
    def begins(self) -> int:
        """See `SearchState`."""
        return min(self.settings.parallel, self.settings.warmup)

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return min(self.settings.parallel, self.settings.samples)

    def may_begin(self) -> int:
        """See `Samples`."""
        return self.settings.warmup if self._threshold is None else self.settings.samples

    def take(self, number: int, branch: Branch) -> bool:
        """See `Samples`."""
        window = self._follow(number, branch)
        if number >= self.settings.warmup and self._below(window.least):
            self.stopped.add(number)  # its last tokens came with its end
            return False
        return super().take(number, branch)

    def stops(self, branches: Mapping[int, Branch]) -> Iterable[int]:
        """See `Samples`."""
        running = [n for n, branch in branches.items() if branch.finish_reason is None]
        for number in running:
            self._follow(number, branches[number])
        late = (n for n in running if n >= self.settings.warmup)
        return [n for n in late if self._below(self._windows[n].least)]

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        settings = self.settings
        if self._threshold is None and all(n in self.answers for n in range(settings.warmup)):
            leasts = [self._windows[n].least for n in range(settings.warmup)]
            found = [least for least in leasts if math.isfinite(least)]
            self._threshold = float(np.quantile(found, 1 - settings.keep)) if found else -math.inf
        if self._threshold is None:
            return None
        while self._counted in self.answers:
            least = self._windows[self._counted].least
            if self._counted not in self.stopped and not self._below(least):
                self._weights[self._counted] = least if math.isfinite(least) else 1.0
            self._counted += 1
            if self._counted >= settings.warmup and self._sure():
                return "confidence"
        return "samples" if self._counted >= settings.samples else None

    def ranked(self) -> list[int]:
        """See `Samples`: of each answer the sample that is surest."""
        order = weigh(self.answers, self._weights)
        best = [
            max((n for n in self._weights if self.answers[n] == each), key=self._rank)
            for each in order
        ]
        rest = [n for n in self.answers if n not in best and n not in self.stopped]
        return [*best, *sorted(rest, key=self._rank, reverse=True)]

    def counted(self) -> list[int]:
        """See `Samples`."""
        return [n for n in range(self._counted) if n not in self.stopped] or sorted(self.answers)

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        told = votes_told(
            {a: round(w, 4) for a, w in weigh(self.answers, self._weights).items()},
            sum(self.answers[n] is None for n in self._weights),
        )
        threshold = self._threshold
        given_up = sorted(n for n in self.stopped if n < self._counted)
        return {**told, "threshold": threshold and round(threshold, 4), "given_up": len(given_up)}

    def _rank(self, number: int) -> tuple[float, int]:
        return self._weights.get(number, 0.0), -number

    def _follow(self, number: int, branch: Branch) -> Window:
        window = self._windows.setdefault(number, Window(self.settings.window))
        window.extend(branch.scores.confidences)
        return window

    def _below(self, least: float) -> bool:
        return self._threshold is not None and least < self._threshold

    def _sure(self) -> bool:
        """Whether the answer that leads has enough of the weight of the samples so far."""
        totals = list(weigh(self.answers, self._weights).values())
        return bool(totals) and totals[0] >= self.settings.certain * sum(totals)


class Window:
    """The least sure window of a sample's tokens: `least` is its mean confidence. Before there is a
    whole window, it is that of all tokens at its end; infinite while none has a confidence."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: list[float] = []
        self._seen = 0
        self._least = math.inf

    def extend(self, confidences: list[float]) -> None:
        """`confidences` are those of all tokens so far, of which the first are known already."""
        for value in confidences[self._seen :]:
            if math.isnan(value):
                continue  # of a token that was not drawn
            self._known.append(value)
            if len(self._known) >= self._size:
                window = self._known[-self._size :]
                self._least = min(self._least, sum(window) / self._size)
        self._seen = len(confidences)

    @property
    def least(self) -> float:
        """The mean confidence of the least sure window."""
        if self._least < math.inf or not self._known:
            return self._least
        return sum(self._known) / len(self._known)
