"""The quality of configurations beside the exact one, on a workload's own prompts and on tasks.

The exact configuration answers greedily, once. Every other one is shown these answers, and its
distributions over the next token are compared with the exact ones at each of their positions. Its
own greedy answers to the items of tasks are scored. What is resampled is the case, never the
position: positions of one text are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError
from ockham.engine.engine import Engine
from ockham.lab.cases import Case
from ockham.lab.comparison import check_space
from ockham.lab.difference import distance
from ockham.lab.evaluate import Result, evaluate
from ockham.lab.forced import forced_logits
from ockham.plan.floors import Floor
from ockham.plan.log import Log, Record
from ockham.plan.space import Point

POSITIONS = 32
"""Of a case that are compared, at most."""
BATCH = 8
"""Cases that are judged at a time: between two batches a plan may stop, or wait for others."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a configuration loses of one metric, by case: 0 is the exact configuration. `bound` is
    the most that a floor allows."""

    metric: str
    bound: float
    mean: float
    upper: float
    """Of the mean, with the confidence that was asked for; inf where too few cases say nothing."""
    lower: float
    cases: int

    @property
    def holds(self) -> bool:
        return self.upper <= self.bound

    @property
    def misses(self) -> bool:
        return self.lower > self.bound


class Judge:
    """Judges configurations of one model. `cases` are of the workload, of which distances are
    taken, and `items` of each task in `floors`.

    `exact` must be called first. `pause` is called between batches: it may wait, or raise to end.
    """

    def __init__(
        self,
        base: EngineConfig,
        log: Log,
        context: str,
        directory: Path,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.base, self._log, self._context, self._pause = base, log, context, pause
        self._directory = directory
        self._answers: dict[str, list[int]] = {}
        self._logits: dict[str, Path] = {}
        self._cases: list[Case] = []
        self._items: dict[str, list[Case]] = {}
        self._known: dict[tuple[Point, str], Record] = {}
        self.refused: dict[Point, str] = {}
        self.judged = 0
        """Cases that were run here, of all configurations: what the log knew is not among them."""
        self.ran: set[Point] = set()
        """The configurations that any were run of."""
        for record in log.of(context, "distance", "score"):
            self._known[record.point, record.case] = record
        for record in log.of(context, "refused"):
            self.refused[record.point] = record.text

    def exact(
        self,
        engine: Engine,
        cases: Sequence[Case],
        answers: Mapping[str, Sequence[int]],
        items: Mapping[str, Sequence[Case]],
    ) -> None:
        """Keep what the exact configuration predicts at its own greedy `answers` to the cases, by
        key, and score it on the items of each task. Raises ConfigError if its logits would not fit
        on the disk."""
        self._cases = [case for case in cases if answers.get(case.key)]
        self._answers = {c.key: list(answers[c.key][:POSITIONS]) for c in self._cases}
        self._items = {task: list(own) for task, own in items.items()}
        positions = sum(map(len, self._answers.values()))
        check_space(self._directory, positions, engine.vocabulary)
        for start in range(0, len(self._cases), BATCH):
            self._pause()
            batch = self._cases[start : start + BATCH]
            for key, logits in forced_logits(engine, batch, self._shown):
                path = self._logits[key] = self._directory / f"{len(self._logits)}.npy"
                np.save(path, logits)
        for task in self._items:
            self._score(Point(), engine, task, len(self._items[task]))

    def judge(self, point: Point, *, cases: Sequence[Case], items: int) -> bool:
        """Measure what is not known yet of a configuration: its distances on `cases`, and its
        scores on the first `items` of each task. Whether the engine can run it; `refused` says why
        it cannot."""
        if point in self.refused:
            return False
        distances = [case for case in cases if (point, case.key) not in self._known]
        todo = [
            task
            for task, own in self._items.items()
            if any((point, case.key) not in self._known for case in own[:items])
        ]
        if not distances and not todo:
            return True
        self._pause()
        try:
            engine = Engine(point.config(self.base))
        except OckhamError as error:
            self._refuse(point, str(error))
            return False
        try:
            for start in range(0, len(distances), BATCH):
                self._pause()
                self._compare(point, engine, distances[start : start + BATCH])
            for task in todo:
                self._score(point, engine, task, items)
        except OckhamError as error:  # what only requests are refused for
            self._refuse(point, str(error))
            return False
        finally:
            engine.close()
        return True

    def known(self, point: Point, cases: Sequence[Case]) -> int:
        """How many of the cases are judged."""
        return sum((point, case.key) in self._known for case in cases)

    def loss(self, point: Point, floor: Floor, cases: Sequence[Case], confidence: float) -> Loss:
        """What a configuration loses of a floor's metric, on those of the cases that are judged
        (items of the floor's task, for a score)."""
        if floor.kind == "score":
            return self._score_loss(point, floor, confidence)
        found = [self._known[point, c.key] for c in cases if (point, c.key) in self._known]
        found = [record for record in found if record.kl]
        if floor.metric == "kl_p99":
            every = np.concatenate([r.kl for r in found]) if found else np.empty(0)
            value = float(np.percentile(every, 99)) if len(every) else math.nan
            means = [float(np.percentile(r.kl, 99)) for r in found]
            bound = floor.value
        elif floor.metric == "kl":
            means = [math.fsum(r.kl) / len(r.kl) for r in found]
            value, bound = _mean(means), floor.value
        else:
            means = [1 - r.agree / len(r.kl) for r in found]
            value, bound = _mean(means), 1 - floor.value
        lower, upper = bounds_of_mean(means, confidence)
        return Loss(floor.metric, bound, value, upper, lower, len(means))

    def figures(self, point: Point, cases: Sequence[Case]) -> dict[str, float]:
        """What is known of a configuration's quality: means by metric, and scores by task."""
        found = [self._known[point, c.key] for c in cases if (point, c.key) in self._known]
        every = [value for record in found for value in record.kl]
        figures: dict[str, float] = {}
        if every:
            figures = {
                "kl": math.fsum(every) / len(every),
                "kl_p99": float(np.percentile(every, 99)),
                "agreement": sum(record.agree for record in found) / len(every),
                "positions": float(len(every)),
            }
        for task, own in self._items.items():
            scores = [self._known[point, c.key].score for c in own if (point, c.key) in self._known]
            if scores:
                figures[task] = _mean(scores)
        return figures

    # -- inside --------------------------------------------------------------------------------

    def _shown(self, case: Case) -> list[list[int]]:
        return [self._answers[case.key]]

    def _compare(self, point: Point, engine: Engine, cases: Sequence[Case]) -> None:
        for key, logits in forced_logits(engine, cases, self._shown):
            agree, kl = distance(self._exact_logits(key), logits)
            self._add(
                Record(
                    context=self._context,
                    kind="distance",
                    changes=point.settings,
                    case=key,
                    agree=agree,
                    kl=[float(f"{value:.4g}") for value in kl],
                )
            )

    def _exact_logits(self, key: str) -> Floats:
        logits: Floats = np.load(self._logits[key])
        return logits

    def _score(self, point: Point, engine: Engine, task: str, items: int) -> None:
        todo = [c for c in self._items[task][:items] if (point, c.key) not in self._known]
        for start in range(0, len(todo), BATCH):
            self._pause()

            def done(result: Result) -> None:
                self._add(
                    Record(
                        context=self._context,
                        kind="score",
                        changes=point.settings,
                        case=result.key,
                        task=task,
                        score=_mean(result.scores or [0.0]),
                    )
                )

            evaluate(engine, todo[start : start + BATCH], done)

    def _add(self, record: Record) -> None:
        self.judged += 1
        self.ran.add(record.point)
        self._known[record.point, record.case] = record
        self._log.add(record)

    def _refuse(self, point: Point, why: str) -> None:
        self.refused[point] = why
        self._log.add(
            Record(context=self._context, kind="refused", changes=point.settings, text=why)
        )

    def _score_loss(self, point: Point, floor: Floor, confidence: float) -> Loss:
        """The mean loss of score beside the exact configuration, item by item."""
        own = self._items[floor.metric]
        exact = Point()
        pairs = [
            (self._known[exact, c.key].score, self._known[point, c.key].score)
            for c in own
            if (point, c.key) in self._known and (exact, c.key) in self._known
        ]
        base = _mean([self._known[exact, c.key].score for c in own])
        allowed = base * (1 - floor.value) if floor.relative else base - floor.value
        losses = [before - after for before, after in pairs]
        # Half an item lost and half a one gained, so that no differences are no certainty
        # (Agresti and Min 2005, as in lab/statistics.py).
        padded = [*losses, 0.5, -0.5] if losses else []
        lower, upper = bounds_of_mean(padded, confidence)
        return Loss(floor.metric, allowed, _mean(losses), upper, lower, len(losses))


def bounds_of_mean(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """The lower and the upper bound of a mean, each with this confidence, by Student's t; without
    bounds of fewer than three values."""
    if len(values) < 3:
        return -math.inf, math.inf
    from scipy.stats import t  # takes a while to import, and only plans need it

    mean = _mean(values)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf(confidence, len(values) - 1)) * spread
    return mean - half, mean + half


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
