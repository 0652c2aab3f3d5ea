"""The units in which a configuration states its cost in quality, beside the exact one: next-token
agreement, KL divergence, first divergence of greedy completions, scores and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.core.divergence import kl_nats
from ockham.lab.evaluate import Result
from ockham.lab.statistics import Interval, paired_difference, ratio_interval, wilson

T = TypeVar("T", "Comparison", Result)

Pairs = Sequence[tuple[Result, Result]]
"""What the baseline and the candidate made of the same cases."""


class Comparison(msgspec.Struct, kw_only=True):
    """Two configurations' next-token distributions at the same positions of one case.

    `kl` is the divergence of the candidate from the baseline at each position, in nats; `agree`
    counts positions where both hold the same token likeliest.
    """

    source: str
    index: int
    part: int = 0
    agree: int
    kl: list[float]

    @property
    def key(self) -> str:
        return f"{self.source}/{self.index}/{self.part}"


class Difference(msgspec.Struct, kw_only=True):
    """One task, or all of them: how the candidate differs from the baseline. Intervals are 95%,
    of items, None where there are too few.

    `agreement` is the share of positions whose likeliest token is the same. `kl_*` are in nats.
    `identical` is the share of greedy completions that are the same to the last token; the others
    first differ at token `first_divergence` (the median, counted from 0). `perplexity_ratio` is
    the candidate's perplexity over the baseline's on the same tokens.
    """

    source: str | None
    """None for all together."""
    level: str | None = None
    """Which of several questions over one context."""
    items: int
    positions: int
    agreement: float | None = None
    agreement_interval: Interval | None = None
    kl_mean: float | None = None
    kl_mean_interval: Interval | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    completions: int = 0
    identical: float | None = None
    identical_interval: Interval | None = None
    first_divergence: float | None = None
    baseline_score: float | None = None
    candidate_score: float | None = None
    score_difference: float | None = None
    score_difference_interval: Interval | None = None
    baseline_perplexity: float | None = None
    candidate_perplexity: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_interval: Interval | None = None


def difference(
    source: str | None,
    pairs: Pairs,
    compared: Sequence[Comparison],
    seed: int = 0,
    *,
    level: str | None = None,
) -> Difference:
    """The figures of one source, or (None) of all, from its results and its comparisons."""
    found = Difference(
        source=source,
        level=level,
        items=len({(before.source, before.index) for before, _ in pairs}),
        positions=sum(len(each.kl) for each in compared),
    )
    _fill_distance(found, compared, seed)
    _fill_divergence(found, [pair for pair in pairs if pair[0].token_ids], seed)
    _fill_scores(found, [pair for pair in pairs if pair[0].scores])
    _fill_perplexity(found, [pair for pair in pairs if pair[0].nats is not None], seed)
    return found


def distance(baseline: Floats, candidate: Floats) -> tuple[int, npt.NDArray[np.float64]]:
    """Of two sets of logits, (positions, vocabulary): how often the likeliest token is the same,
    and KL(baseline || candidate) at each position in nats, summed in float64."""
    agree = int((baseline.argmax(axis=1) == candidate.argmax(axis=1)).sum())
    return agree, kl_nats(baseline, candidate)


def first_difference(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The index of the first token in which two completions differ; None if they are the same."""
    for index, (left, right) in enumerate(zip(before, after, strict=False)):
        if left != right:
            return index
    return None if len(before) == len(after) else min(len(before), len(after))


def _fill_distance(found: Difference, compared: Sequence[Comparison], seed: int) -> None:
    if not found.positions:
        return
    kl = np.concatenate([np.asarray(each.kl) for each in compared])
    items = list(_by_item(compared).values())
    positions = [float(sum(len(each.kl) for each in own)) for own in items]
    agree = [float(sum(each.agree for each in own)) for own in items]
    nats = [math.fsum(value for each in own for value in each.kl) for own in items]
    found.agreement = sum(agree) / found.positions
    found.agreement_interval = ratio_interval(agree, positions, seed)
    found.kl_mean, found.kl_max = float(kl.mean()), float(kl.max())
    found.kl_mean_interval = ratio_interval(nats, positions, seed)
    found.kl_p99 = float(np.percentile(kl, 99))


def _by_item(found: Sequence[T]) -> dict[tuple[str, int], list[T]]:
    """What belongs to one item: questions over one context are no samples of their own."""
    items: dict[tuple[str, int], list[T]] = {}
    for each in found:
        items.setdefault((each.source, each.index), []).append(each)
    return items


def _fill_divergence(found: Difference, pairs: Pairs, seed: int) -> None:
    if not pairs:
        return
    by_item: dict[tuple[str, int], list[int | None]] = {}
    for before, after in pairs:
        own = by_item.setdefault((before.source, before.index), [])
        own += map(first_difference, before.token_ids, after.token_ids)
    first = [index for own in by_item.values() for index in own]
    differing = [index for index in first if index is not None]
    same = [float(sum(index is None for index in own)) for own in by_item.values()]
    found.completions = len(first)
    found.identical = 1 - len(differing) / len(first)
    found.identical_interval = (
        wilson(sum(same), len(first))
        if len(first) == len(by_item)
        else ratio_interval(same, [float(len(own)) for own in by_item.values()], seed)
    )
    found.first_divergence = float(np.median(differing)) if differing else None


def _fill_scores(found: Difference, pairs: Pairs) -> None:
    if not pairs:
        return
    before, after = (
        [_mean(own) for own in _by_item(side).values()] for side in zip(*pairs, strict=True)
    )
    found.baseline_score = math.fsum(before) / len(before)
    found.candidate_score = math.fsum(after) / len(after)
    found.score_difference = found.candidate_score - found.baseline_score
    found.score_difference_interval = paired_difference(before, after)


def _mean(results: Sequence[Result]) -> float:
    scores = [score for result in results for score in result.scores or ()]
    return math.fsum(scores) / len(scores)


def _fill_perplexity(found: Difference, pairs: Pairs, seed: int) -> None:
    """Of all tokens of the texts (not only of the positions whose distributions are compared)."""
    if not pairs:
        return
    before = [pair[0].nats or 0.0 for pair in pairs]
    after = [pair[1].nats or 0.0 for pair in pairs]
    tokens = [float(pair[0].scored_tokens) for pair in pairs]
    found.baseline_perplexity = math.exp(math.fsum(before) / sum(tokens))
    found.candidate_perplexity = math.exp(math.fsum(after) / sum(tokens))
    found.perplexity_ratio = found.candidate_perplexity / found.baseline_perplexity
    more = [right - left for left, right in zip(before, after, strict=True)]
    interval = ratio_interval(more, tokens, seed)
    if interval is not None:
        found.perplexity_ratio_interval = math.exp(interval[0]), math.exp(interval[1])
