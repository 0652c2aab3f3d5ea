"""One row of evidence: what a technique saved here, what it cost, and what its paper claims."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import msgspec

from ockham.lab.statistics import Interval, paired_difference


class Fidelity(msgspec.Struct, kw_only=True):
    """What an approximate technique changes, beside the exact one on the same prompts."""

    agreement: float
    """Share of positions whose likeliest token is the same."""
    kl_mean: float
    """Nats."""
    kl_p99: float
    positions: int
    perplexity_ratio: float | None = None
    """That of the approximate one over that of the exact one, on texts."""


class Row(msgspec.Struct, kw_only=True):
    """What was measured of one technique.

    `without` and `with_` are in `unit`, each the median over the rounds. `speed` is the time
    without the technique over the time with it, round by round: above 1 it is faster.
    """

    seam: str
    name: str
    exact: bool
    what: str
    """The workload, and what the technique was compared with."""
    unit: str
    without: float
    with_: float
    speed: float | None = None
    speed_interval: Interval | None = None
    rounds: int = 0
    identical: bool | None = None
    """Whether every token was the same with and without; None where that has no meaning."""
    fidelity: Fidelity | None = None
    real_fidelity: Fidelity | None = None
    """The same on a model that was trained on the real world, which `real_model` names, or says why
    it was not measured."""
    twin_fidelity: Fidelity | None = None
    """And on its twin whose weights lie on no grid: see `real_model.py`."""
    real_model: str = ""
    scores: tuple[float, float] | None = None
    """The share of right answers without and with an approximate technique."""
    score_interval: Interval | None = None
    """Of the difference between them, with less without, over the same questions: 95%."""
    scored_items: int = 0
    recall: float | None = None
    """Of a pattern, the share of attention that is on keys which it visits, of sampled rows."""
    later_scores: tuple[float, float] | None = None
    """The same for questions 2 to 5, over the state that the first question left."""
    later_interval: Interval | None = None
    """Of the difference between those."""
    perplexity: tuple[float, float] | None = None
    """Of what was generated, as the model reads it, without and with an approximate technique."""
    tokens_per_step: float | None = None
    """Of one sequence with a drafter."""
    accepted_at: tuple[float, ...] = ()
    """Of the drafts that were as deep, the share that was accepted at each depth."""
    error: float | None = None
    """Relative error of a product, where that is what was compared."""
    claim: str
    """What the paper says, with its source; "" for a technique of common knowledge."""
    model: str = ""

    def compare_answers(self, before: Sequence[float], after: Sequence[float]) -> None:
        """Note how right the same questions were answered without and with the technique. Nothing
        is noted of no questions."""
        if before:
            self.scores = fmean(before), fmean(after)
            self.score_interval = paired_difference(before, after)
            self.scored_items = len(before)

    @property
    def saved(self) -> float:
        """The share of the units that was saved."""
        return 1 - self.with_ / self.without if self.without else 0.0

    @property
    def verdict(self) -> str:
        """The figures in words."""
        parts = [_saving(self.saved, self.unit)]
        if self.speed is not None:
            parts.append(_speed(self.speed, self.speed_interval))
        if self.exact and self.identical is not None:
            parts.append("same tokens" if self.identical else "TOKENS DIFFER: a defect")
        if self.fidelity is not None:
            parts.append(f"{1 - self.fidelity.agreement:.1%} of the likeliest tokens change")
        if self.twin_fidelity is not None:
            change = 1 - self.twin_fidelity.agreement
            parts.append(f"{change:.1%} on {self.real_model}")
        if self.scores is not None:
            parts.append(
                f"{self.scores[0]:.0%} of the answers right without, {self.scores[1]:.0%} with"
                + change_words(self.score_interval)
            )
        if self.recall is not None:
            parts.append(f"{self.recall:.1%} of the attention visited")
        if self.later_scores is not None:
            parts.append(
                f"{self.later_scores[0]:.0%} and {self.later_scores[1]:.0%} of those to later "
                f"questions{change_words(self.later_interval)}"
            )
        if self.perplexity is not None:
            parts.append(
                f"perplexity {self.perplexity[0]:.1f} without, {self.perplexity[1]:.1f} with"
            )
        if self.tokens_per_step is not None:
            parts.append(f"{self.tokens_per_step:.2f} tokens for each forward pass")
        if self.error is not None:
            parts.append(f"a product is off by {self.error:.2%}")
        return "; ".join(parts)


def change_words(interval: Interval | None) -> str:
    """The interval of a difference between shares, as a part of a sentence."""
    if interval is None:
        return ""
    low, high = (100 * end for end in interval)
    return f" ({low:+.0f} to {high:+.0f} points)"


def _saving(share: float, unit: str) -> str:
    if abs(share) < 0.005:
        return f"saves no {unit}"
    return f"saves {share:.0%} of the {unit}" if share > 0 else f"costs {-share:.0%} more {unit}"


def _speed(ratio: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{ratio:.2f} times as fast, in one round"
    low, high = interval
    if low <= 1 <= high:
        return "no difference in time that the rounds can tell"
    return f"{ratio:.2f} times as fast" if low > 1 else f"slower: {ratio:.2f} times as fast"
