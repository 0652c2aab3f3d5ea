"""The search: the cheapest configuration that keeps to the floors.

Costs are predicted for what is looked at; quality is measured, because nothing predicts it well.

1. Every choice alone is predicted. One that does not pay alone is left out: the search assumes that
   it would not beside others either.
2. Combinations of the rest are gone through in the order of what they promise: the logarithm of the
   predicted gain, times the probability of keeping to the floors, as the log of measurements lets
   expect (`expecting.py`).
3. The most promising one is judged on a few cases of the workload, then on more (successive
   halving: what surely misses a floor is given up at the first look).
4. One that holds on all of them is judged once more, on cases that have chosen nothing. The k-th
   that is verified must hold with a confidence of 1 - 0.05 / 2**k, so that trying several times
   does not wear the confidence out. If it does not hold, the search goes on.
5. Of what holds, each change is timed alone beside the default. By how much the prediction was off
   corrects the predictions of everything that has the change, and the search goes on with those.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ockham.core.errors import OckhamError
from ockham.lab.cases import Case
from ockham.plan.expecting import Change, Expectations, Likely
from ockham.plan.floors import Floor, Floors
from ockham.plan.judging import Judge, Loss
from ockham.plan.log import Log
from ockham.plan.result import Figures, Tried
from ockham.plan.space import Point, Space

RUNGS = (4, 12, 32)
"""Cases after which a configuration is looked at."""
LOOK_CONFIDENCE = 0.9
VERIFY_CONFIDENCE = 0.95
LEAST_GAIN = 0.003
"""A choice that promises less than this share is not gone into."""
MOST_CHANGES = 5
"""Of a combination beside the default; more are rarely worth their risk."""
MOST_COMBINED = 20_000
LEAST_CASES = 8
"""Fewer cases than these decide nothing."""

TIMED = 2
"""Runs of a change alone, and of the default beside it."""
UNSEEN = (
    "it takes other tokens, which divergences and agreement at given tokens do not see; state "
    "floors of tasks alone to have it tried"
)
OUT_OF_TIME = "the time was up"
UNPREDICTED = "the time was up before it was predicted"

Predict = Callable[[Point], Figures]
"""The predicted figures of a configuration. Raises OckhamError where it cannot run, or cannot be
predicted."""


class OutOfTime(Exception):
    """The time of a plan is up; what is known so far stands."""


@dataclass(slots=True)
class Candidate:
    """A configuration on its way: what it promises, and how far it is judged."""

    point: Point
    predicted: float
    """The goal, for it or from its parts."""
    goal: float
    """The same, corrected by what was measured of its changes."""
    simulated: bool = False
    rung: int = 0
    verdict: str = "unmeasured"
    why: str = ""


@dataclass(slots=True)
class Found:
    """What a search came to: the configurations that hold, cheapest first, and why it ended."""

    holding: list[Candidate]
    candidates: list[Candidate]
    left_out: dict[str, str]
    space: int
    ended: str = "all that may pay was decided"
    nearest: Candidate | None = None
    """Where no configuration keeps to the bounds on speed: the one that misses them least."""
    misses: str = ""

    @property
    def unpredicted(self) -> int:
        """Choices that nothing is known of, as the time was up."""
        return sum(why == UNPREDICTED for why in self.left_out.values())


@dataclass(slots=True)
class Searching:
    """One search. `judge` is None where no floor of quality was stated: then only what is exact may
    be chosen."""

    space: Space
    floors: Floors
    goal: str
    predict: Predict
    judge: Judge | None
    log: Log
    context: str
    select: Sequence[Case]
    """Cases that choose."""
    verify: Sequence[Case]
    """Cases that prove what was chosen."""
    items: int
    """Items of each task."""
    measure: Callable[[Point], Figures] | None = None
    """Runs a configuration; None where nothing can be timed."""
    predict_until: float | None = None
    """The time (`time.monotonic`) after which no further choice is predicted alone, if one pays."""
    pause: Callable[[], None] = lambda: None
    tell: Callable[[str], None] = lambda line: None
    figures: dict[Point, Figures] = field(default_factory=dict)
    refused: dict[Point, str] = field(default_factory=dict)
    corrections: dict[Change, float] = field(default_factory=dict)
    """The goal of a change alone, as measured over as predicted, both beside the default."""
    _verified: int = 0
    _expected: dict[str, Expectations] = field(default_factory=dict)
    _within_known: dict[tuple[Point, Floor], float] = field(default_factory=dict)

    def figures_of(self, point: Point) -> Figures | None:
        """The predicted figures; None where there are none, and `refused` says why."""
        if point in self.refused:
            return None
        if point not in self.figures:
            self.pause()
            why = self.space.refusal(point)
            try:
                if why is None:
                    self.figures[point] = self.predict(point)
            except OckhamError as error:
                why = str(error)
            if why is not None:
                self.refused[point] = why
                return None
        return self.figures[point]

    def run(self) -> Found:
        """Search. What was found is given back also when the time is up."""
        default = self.figures_of(Point())
        assert default is not None, "the default was checked before"
        found = Found([], [], {}, 1)
        try:
            self._go(default, found)
        except OutOfTime:
            found.ended = OUT_OF_TIME
        found.holding.sort(key=lambda each: each.goal)
        return found

    def _go(self, default: Figures, found: Found) -> None:
        pays = self._singles(default, found)
        pool = self._pool(default, pays, found)
        found.space = len(pool)
        best = math.inf
        for each in pool:
            if not each.point.changes and not self._slow(default):
                best = each.goal
                each.verdict, each.simulated = "holds", True
                found.holding.append(each)
        left = [each for each in pool if each.verdict == "unmeasured"]
        while left:
            self.pause()
            chosen = self._most_promising(left, best)
            if chosen is None:
                break
            if not chosen.simulated:
                self._simulate(chosen, found)
            elif self._judged(chosen) and self._verify(chosen):
                chosen.verdict = "holds"
                found.holding.append(chosen)
                self._correct(chosen)
                for each in (*left, *found.holding):
                    each.goal = self.corrected(each.point, each.predicted)
                best = min(each.goal for each in found.holding)
                self.tell(
                    f"{chosen.point} holds, at {chosen.goal / default[self.goal]:.2f} of the "
                    f"default's {self.goal}"
                )
            if chosen.verdict != "unmeasured":
                found.candidates.append(chosen)
                left.remove(chosen)

    # -- what may pay --------------------------------------------------------------------------

    def _singles(self, default: Figures, found: Found) -> dict[Point, float]:
        """The choices that pay alone, with the share of the goal that is left."""
        pays: dict[Point, float] = {}
        slow = self._slow(default)
        late = False
        for single in _in_turn(self.space):
            if late:
                found.left_out[str(single)] = UNPREDICTED
                continue
            (change,) = single.changes
            if self.space.choice(*change).chooses and not self._seen_by_tasks:
                found.left_out[str(single)] = UNSEEN
                continue
            try:
                if pays:  # else there is nothing to search among yet
                    self._check_predicting()
                figures = self.figures_of(single)
            except OutOfTime:
                late, found.ended = True, OUT_OF_TIME
                found.left_out[str(single)] = UNPREDICTED
                continue
            if figures is None:
                found.left_out[str(single)] = self.refused[single]
                continue
            share = figures[self.goal] / default[self.goal]
            quicker = any(
                floor.slack(figures[floor.metric]) > floor.slack(default[floor.metric]) + 0.01
                for floor in slow
            )
            if share > 1 - LEAST_GAIN and not quicker:
                found.left_out[str(single)] = f"alone it takes {share:.2f} of the default's"
                continue
            if not self.space.exact(single) and self.judge is None:
                found.left_out[str(single)] = "it is approximate, and no floor of quality is stated"
                continue
            pays[single] = share
        unseen = found.unpredicted
        rest = f"; the time was up before {unseen} more were predicted" if unseen else ""
        seen = len(pays) + len(found.left_out) - unseen
        self.tell(f"{len(pays)} of {seen} choices pay alone{rest}")
        return pays

    def _check_predicting(self) -> None:
        if self.predict_until is not None and time.monotonic() > self.predict_until:
            raise OutOfTime

    def _pool(self, default: Figures, pays: dict[Point, float], found: Found) -> list[Candidate]:
        """The combinations, with the goal that their parts let expect."""
        usable = []
        for single in pays:
            if self._holds(single) < 0.001:
                found.left_out[str(single)] = "the log of measurements says that it misses a floor"
                continue
            usable.append(single)
        pool = []
        for point in itertools.islice(self.space.products(usable, MOST_CHANGES), MOST_COMBINED):
            share = math.prod(pays[part] for part in point.parts)
            expected = default[self.goal] * share
            pool.append(Candidate(point, expected, expected))
        return pool

    @property
    def _seen_by_tasks(self) -> bool:
        """Whether what takes other tokens is judged: by scores of tasks alone."""
        return bool(self.floors.scores) and not self.floors.distances

    # -- promises ------------------------------------------------------------------------------

    def _most_promising(self, left: list[Candidate], best: float) -> Candidate | None:
        """Whose next look promises most: the logarithm of its gain over the best so far, times the
        probability that it holds. None if none promises enough."""
        left.sort(key=lambda each: (each.goal, each.point))
        if math.isinf(best):  # nothing is quick enough yet
            best = left[-1].goal * math.e
        most, chosen = LEAST_GAIN, None
        for each in left:
            gain = math.log(best / each.goal)
            if gain <= most:  # and those behind it gain less, whatever their probability
                break
            promise = gain * self._holds(each.point)
            if promise > most:
                most, chosen = promise, each
        return chosen

    def _holds(self, point: Point) -> float:
        if self.space.exact(point):
            return 1.0
        return min((self._within(point, floor) for floor in self.floors.of_quality), default=0.0)

    def _within(self, point: Point, floor: Floor) -> float:
        assert self.judge is not None, "only then are approximate choices among the candidates"
        key = (point, floor)
        if key not in self._within_known:
            likely = self._likely(point, floor.metric)
            loss = self.judge.loss(point, floor, self.select, LOOK_CONFIDENCE)
            if loss.cases:
                likely = Likely(max(loss.mean, 1e-9), min(likely.spread, _spread_of(loss)))
            self._within_known[key] = 0.0 if loss.misses else likely.within(loss.bound)
        return self._within_known[key]

    def _likely(self, point: Point, metric: str) -> Likely:
        if metric not in self._expected:
            self._expected[metric] = Expectations(self.log, self.context, metric)
        exact = [pair for pair in point.changes if self.space.choice(*pair).exact]
        return self._expected[metric].of(point, exact)

    # -- looks ---------------------------------------------------------------------------------

    def _simulate(self, candidate: Candidate, found: Found) -> None:
        """Predict a combination as it is, instead of from its parts."""
        figures = self.figures_of(candidate.point)
        candidate.simulated = True
        if figures is None:
            candidate.verdict, candidate.why = "refused", self.refused[candidate.point]
            return
        candidate.predicted = figures[self.goal]
        candidate.goal = self.corrected(candidate.point, candidate.predicted)
        slow = self._slow(figures)
        if slow:
            told = ", ".join(f"{floor} ({figures[floor.metric]:.4g})" for floor in slow)
            candidate.verdict, candidate.why = "slow", f"it misses {told}"
            self._note_nearest(candidate, figures, found)

    def _judged(self, candidate: Candidate) -> bool:
        """Judge a candidate on its next rung. Whether it holds."""
        point = candidate.point
        if self.space.exact(point):
            return True
        assert self.judge is not None, "only then are approximate choices among the candidates"
        cases = min(RUNGS[candidate.rung], len(self.select))
        items = max(1, round(self.items * cases / max(1, min(RUNGS[-1], len(self.select)))))
        ran = self.judge.judge(point, cases=self.select[:cases], items=items)
        self._expected.clear()  # there is more to learn from
        self._within_known.clear()
        if not ran:
            candidate.verdict, candidate.why = "refused", self.judge.refused[point]
            return False
        last = cases == len(self.select) or candidate.rung == len(RUNGS) - 1
        candidate.rung += 1
        losses = self.losses(point, self.select[:cases], LOOK_CONFIDENCE)
        missed = [loss for loss in losses if loss.misses or (last and loss.mean > loss.bound)]
        if missed:
            candidate.verdict = "misses"
            candidate.why = f"{missed[0].metric} loses {missed[0].mean:.4g}"
        elif last and not all(loss.holds for loss in losses):
            candidate.verdict = "undecided"
            candidate.why = f"{cases} cases do not say whether it holds"
        return last and candidate.verdict == "unmeasured"

    def _verify(self, candidate: Candidate) -> bool:
        """Whether a candidate that holds does so on fresh cases, too."""
        point = candidate.point
        if self.space.exact(point):
            return True
        assert self.judge is not None, "only then are approximate choices among the candidates"
        self._verified += 1
        confidence = 1 - (1 - VERIFY_CONFIDENCE) / 2**self._verified
        candidate.verdict = "unverified"
        if not self.judge.judge(point, cases=self.verify, items=self.items):
            candidate.why = self.judge.refused[point]
            return False
        wrong = [each for each in self.losses(point, self.verify, confidence) if not each.holds]
        if wrong:
            candidate.why = f"on fresh cases {wrong[0].metric} may lose up to {wrong[0].upper:.4g}"
        return not wrong

    def losses(self, point: Point, cases: Sequence[Case], confidence: float) -> list[Loss]:
        """What a configuration loses of each floor of quality."""
        assert self.judge is not None, "only then are there floors of quality"
        return [
            self.judge.loss(point, floor, cases, confidence) for floor in self.floors.of_quality
        ]

    # -- speed ---------------------------------------------------------------------------------

    def _slow(self, figures: Figures) -> list[Floor]:
        return self.floors.missed(figures, self.floors.speeds)

    def _note_nearest(self, candidate: Candidate, figures: Figures, found: Found) -> None:
        def worst(of: Figures) -> float:
            return min(f.slack(of[f.metric]) for f in self.floors.speeds if f.metric in of)

        nearest = found.nearest
        if nearest is None or worst(figures) > worst(self.figures[nearest.point]):
            found.nearest, found.misses = candidate, candidate.why

    # -- corrections ---------------------------------------------------------------------------

    def _correct(self, candidate: Candidate) -> None:
        """Time the changes of a candidate, each alone beside the default."""
        if self.measure is None:
            return
        default = self.figures[Point()][self.goal]
        for part in candidate.point.parts:
            (change,) = part.changes
            figures = self.figures_of(part)
            if change in self.corrections or figures is None:
                continue
            runs: tuple[list[float], list[float]] = ([], [])
            for _ in range(TIMED):
                for point, own in zip((part, Point()), runs, strict=True):
                    self.pause()
                    own.append(self.measure(point)[self.goal])
            share = min(runs[0]) / min(runs[1])  # what others took of the machine is in the rest
            self.corrections[change] = share / (figures[self.goal] / default)

    def corrected(self, point: Point, predicted: float) -> float:
        """A predicted goal, by what was measured of the configuration's changes."""
        return predicted * math.prod(self.corrections.get(c, 1.0) for c in point.changes)


def _in_turn(space: Space) -> Iterator[Point]:
    """Every choice alone, of each setting in turn: if the time does not suffice, all settings have
    been looked at."""
    for same in itertools.zip_longest(*space.choices.values()):
        for choice in same:
            if choice is not None:
                yield Point(((choice.setting, choice.value),))


def _spread_of(loss: Loss) -> float:
    """The standard deviation of the logarithm of a mean, from its bounds."""
    if not math.isfinite(loss.upper) or loss.mean <= 0 or loss.upper <= 0:
        return 1.0
    return max(0.05, math.log(max(loss.upper / loss.mean, 1.0001)) / 1.28)


def tried(searching: Searching, candidate: Candidate, cases: Sequence[Case]) -> Tried:
    """A candidate as the plan tells of it."""
    judge = searching.judge
    return Tried(
        changes=candidate.point.settings,
        verdict=candidate.verdict,
        why=candidate.why,
        predicted=searching.figures.get(candidate.point, {}),
        quality={} if judge is None else judge.figures(candidate.point, cases),
        cases=0 if judge is None else judge.known(candidate.point, cases),
    )
