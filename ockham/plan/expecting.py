"""What a configuration is expected to lose, before it is measured: a model of the log.

Losses of several changes together are taken to be the sum of what each loses alone, which small
losses nearly are. What each loses is fitted to this plan's own measurements; where there is none,
to those of other models and workloads in the log, of which the alike count most. So a plan tries
first what has paid elsewhere, and hardly ever what has failed everywhere (the idea of learning from
a log which acceleration suits a task: paper 141 of the mission's list).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ockham.plan.log import Log, Record
from ockham.plan.space import Point, Value

UNKNOWN_LOSS, UNKNOWN_SPREAD = 0.05, 2.0
"""Of a change that nobody has measured: its median loss, and the standard deviation of the
logarithm."""
OWN_SPREAD = 0.3
"""The same of a change that this plan has measured alone."""
LEAST_SPREAD = 0.5
"""The same of one that only others have measured, at least."""
TOGETHER_SPREAD = 0.35
"""What several changes together add to it."""
LEAST_LOSS = 1e-7

Change = tuple[str, Value]
Seen = tuple[Point, float]
"""A configuration, and the mean of what it lost."""


class Likely(msgspec.Struct, frozen=True):
    """The expected loss: its median, and the standard deviation of its logarithm."""

    median: float
    spread: float

    def within(self, bound: float) -> float:
        """The probability of losing at most `bound`."""
        if bound <= 0:
            return 0.0
        if self.median <= LEAST_LOSS:
            return 1.0
        return statistics.NormalDist().cdf((math.log(bound / self.median)) / max(self.spread, 1e-9))


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """What a change lost in another context, and how much that one is like this."""

    loss: float
    weight: float


class Expectations:
    """Expected losses of one metric in one context. `metric` is `kl`, `kl_p99`, `agreement` or a
    task's name; losses are as in `judging.Loss`."""

    def __init__(self, log: Log, context: str, metric: str) -> None:
        self._own: dict[Change, float] = {}
        self._elsewhere: dict[Change, list[_Elsewhere]] = {}
        facts = {r.context: r.facts for r in log.records if r.kind == "context"}
        kinds = ("score",) if metric not in ("kl", "kl_p99", "agreement") else ("distance",)
        records: dict[str, list[Record]] = {}
        for record in log.records:
            if record.kind in kinds and (kinds == ("distance",) or record.task == metric):
                records.setdefault(record.context, []).append(record)
        for other, found in records.items():
            losses = _contributions(losses_of(found, metric))
            if other == context:
                self._own = losses
                continue
            weight = alike(facts.get(context, {}), facts.get(other, {}))
            for change, loss in losses.items():
                self._elsewhere.setdefault(change, []).append(_Elsewhere(loss, weight))

    def of(self, point: Point, exact: Iterable[Change] = ()) -> Likely:
        """What a configuration is expected to lose; `exact` changes lose nothing."""
        free = set(exact)
        parts = [self._change(change) for change in point.changes if change not in free]
        total = math.fsum(part.median for part in parts)
        if total <= LEAST_LOSS:
            return Likely(total, OWN_SPREAD)
        # Of a sum, by its parts' shares.
        spread = math.fsum((part.median / total * part.spread) ** 2 for part in parts)
        together = TOGETHER_SPREAD**2 if len(parts) > 1 else 0.0
        return Likely(total, math.sqrt(spread + together))

    def _change(self, change: Change) -> Likely:
        if change in self._own:
            return Likely(self._own[change], OWN_SPREAD)
        found = self._elsewhere.get(change)
        if not found:
            return Likely(UNKNOWN_LOSS, UNKNOWN_SPREAD)
        logs = np.log([max(each.loss, LEAST_LOSS) for each in found])
        weights = np.array([each.weight for each in found])
        mean = float(np.average(logs, weights=weights))
        variance = float(np.average((logs - mean) ** 2, weights=weights))
        # The less others are like this, the less they say.
        doubt = UNKNOWN_SPREAD**2 * (1 - float(weights.max())) ** 2
        return Likely(math.exp(mean), math.sqrt(LEAST_SPREAD**2 + variance + doubt))


def losses_of(records: Iterable[Record], metric: str) -> list[Seen]:
    """The mean loss of each configuration by its records; of a score, beside the exact one's."""
    by_point: dict[Point, list[Record]] = {}
    for record in records:
        by_point.setdefault(record.point, []).append(record)
    if metric in ("kl", "kl_p99", "agreement"):
        return [(point, _distance(found, metric)) for point, found in by_point.items()]
    exact = {record.case: record.score for record in by_point.get(Point(), ())}
    found = []
    for point, own in by_point.items():
        pairs = [(exact[r.case], r.score) for r in own if r.case in exact]
        if pairs:
            found.append((point, math.fsum(b - a for b, a in pairs) / len(pairs)))
    return found


def _distance(records: Sequence[Record], metric: str) -> float:
    every = [value for record in records for value in record.kl]
    if not every:
        return 0.0
    if metric == "kl":
        return math.fsum(every) / len(every)
    if metric == "kl_p99":
        return float(np.percentile(every, 99))
    return 1 - sum(record.agree for record in records) / len(every)


def _contributions(seen: Sequence[Seen]) -> dict[Change, float]:
    """What each change loses, by non-negative least squares of relative errors: those measured
    alone as measured, those seen only beside others by what is left to them."""
    alone = {p.changes[0]: max(0.0, loss) for p, loss in seen if len(p.changes) == 1}
    others = [(p, loss) for p, loss in seen if len(p.changes) > 1]
    unknown = list(dict.fromkeys(c for p, _ in others for c in p.changes if c not in alone))
    if not unknown:
        return alone
    from scipy.optimize import nnls

    rows, wanted = [], []
    for point, loss in others:
        left = max(0.0, loss - math.fsum(alone.get(c, 0.0) for c in point.changes))
        scale = 1 / max(loss, LEAST_LOSS)
        rows.append([scale * (change in point.changes) for change in unknown])
        wanted.append(scale * left)
    found, _ = nnls(np.array(rows, float), np.array(wanted))
    return alone | dict(zip(unknown, map(float, found), strict=True))


def alike(one: Mapping[str, str | float], other: Mapping[str, str | float]) -> float:
    """How much two contexts are alike, from 0 to 1: by their model, and by how far the logarithms
    of their mean lengths lie apart."""
    apart = 0.0 if one.get("model") == other.get("model") else 1.0
    for name in ("prompt_tokens", "answer_tokens"):
        a, b = one.get(name), other.get(name)
        if isinstance(a, float) and isinstance(b, float) and a > 0 and b > 0:
            apart += abs(math.log(a / b)) / 2
        else:
            apart += 1.0
    return math.exp(-apart)
