"""A plan from beginning to end: the exact answers, the search, the proof on fresh cases, and the
measurement of what is chosen beside the default."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request as EngineRequest
from ockham.lab.cases import Case, task_cases
from ockham.lab.running import drive
from ockham.lab.statistics import Interval, paired_ratio
from ockham.plan.costs import Costs, check_workload
from ockham.plan.floors import Floors
from ockham.plan.judging import POSITIONS, Judge
from ockham.plan.log import Log, digest
from ockham.plan.others import Others
from ockham.plan.result import Contribution, Figures, Plan
from ockham.plan.search import (
    LEAST_CASES,
    OUT_OF_TIME,
    RUNGS,
    Candidate,
    Found,
    OutOfTime,
    Searching,
    tried,
)
from ockham.plan.simulation import Prompted
from ockham.plan.space import Point, Space

BUSY = 0.1
"""The share of the processors' time from which on others are told of."""
ITEMS = 40
"""Of each task that a floor names."""
PREDICT_SHARE, SEARCH_SHARE = 0.35, 0.75
"""Until then choices are predicted alone, of the time that the exact configuration's answers have
left; and searched among, of the whole. The rest is for the measurement of what was found."""
ROUNDS = 3
"""In which default and chosen are measured in turns."""

Tell = Callable[[str], None]


@dataclass(slots=True)
class Wanted:
    """What a plan is asked for."""

    base: EngineConfig
    workload: str
    requests: Prompted
    floors: Floors
    goal: str
    space: Space
    seed: int = 0
    rate: float | None = None
    time_s: float | None = None
    hourly: float = 1.0
    machine: str = ""
    rounds: int = ROUNDS
    """0: nothing is timed, as on behalf of another machine."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a plan stands on: the requests that fit, what the exact configuration says to each, the
    digest of what decides quality, and the cases that choose and prove."""

    requests: Prompted
    answers: Mapping[str, Sequence[int]]
    context: str
    numerics_id: str
    select: Sequence[Case]
    verify: Sequence[Case]


@dataclass(slots=True)
class Planner:
    """Makes one plan. `wait` is called whenever it may wait for others, or be stopped by them."""

    wanted: Wanted
    log: Log
    costs: Callable[[Prompted, Mapping[str, Sequence[int]]], Costs]
    tell: Tell = lambda line: None
    wait: Callable[[], None] = lambda: None
    _began: float = field(default_factory=time.monotonic)
    _others: Others = field(default_factory=Others)
    _ends: float | None = None

    def make(self) -> Plan:
        """The plan. Raises ConfigError for a workload that the model cannot answer, and OckhamError
        where the default configuration itself cannot run."""
        wanted = self.wanted
        self._limit(SEARCH_SHARE)
        self.tell("the exact configuration answers the workload")
        engine = Engine(wanted.base)
        try:
            ground = self.ground(engine)
            with tempfile.TemporaryDirectory(prefix="ockham-plan-") as directory:
                judge = None
                if wanted.floors.of_quality:
                    judge = self.judge(engine, ground, Path(directory))
                engine.close()
                del engine
                return self._plan(ground, judge)
        except OutOfTime:
            raise ConfigError(
                f"{wanted.time_s:.0f} s are not enough to answer the workload even once; give the "
                "plan more --time, or fewer --requests."
            ) from None

    def ground(self, engine: Engine) -> Ground:
        """What the plan stands on, with the exact configuration's engine."""
        requests = check_workload(self.wanted.requests, engine)
        answers = self._answers(engine, requests)
        context = self._describe(engine, requests, answers)
        select, verify = self._cases(requests, answers)
        return Ground(requests, answers, context, engine.model.numerics_id, select, verify)

    def judge(self, engine: Engine, ground: Ground, directory: Path) -> Judge:
        """Who judges beside the exact configuration, whose engine this is."""
        judge = Judge(self.wanted.base, self.log, ground.context, directory, self._pause)
        cases = [*ground.select, *ground.verify]
        answers = {case.key: ground.answers[case.level] for case in cases}
        judge.exact(engine, cases, answers, self._items(engine))
        return judge

    # -- what is measured on -------------------------------------------------------------------

    def _answers(self, engine: Engine, requests: Prompted) -> dict[str, list[int]]:
        """What the exact configuration says greedily, by request."""
        found: dict[str, list[int]] = {}
        ends = self._until(1.0)

        def done(output: RequestOutput) -> None:
            found[output.request_id] = list(output.outputs[0].token_ids)
            if ends is not None and time.monotonic() > ends:
                raise OutOfTime

        def asked() -> Iterator[EngineRequest]:
            for request, tokens in requests:
                self._pause()
                yield EngineRequest(
                    request_id=request.id,
                    prompt_token_ids=list(tokens),
                    params=SamplingParams(temperature=0.0, max_tokens=request.max_tokens),
                    detokenize=False,
                )

        drive(engine, asked(), done)
        return found

    def _describe(
        self, engine: Engine, requests: Prompted, answers: Mapping[str, Sequence[int]]
    ) -> str:
        """The digest of what decides quality, described in the log."""
        decides = {
            "numerics_id": engine.model.numerics_id,
            "prompts": digest({r.id: list(tokens) for r, tokens in requests}),
            "answers": {r.id: r.max_tokens for r, _ in requests},
            "positions": POSITIONS,
            "seed": self.wanted.seed,
        }
        context = digest(decides)
        mean = len(requests)
        self.log.describe(
            context,
            {
                "model": self.wanted.base.model,
                "workload": self.wanted.workload,
                "prompt_tokens": sum(len(tokens) for _, tokens in requests) / mean,
                "answer_tokens": sum(map(len, answers.values())) / mean,
            },
        )
        return context

    def _cases(
        self, requests: Prompted, answers: Mapping[str, Sequence[int]]
    ) -> tuple[list[Case], list[Case]]:
        """The cases that choose, and those that prove: of different sessions, as the requests of a
        session share text. A case's level is the id of its request."""
        sessions: dict[str, str] = {}
        cases: dict[str, list[Case]] = {}
        for number, (request, tokens) in enumerate(requests):
            first = sessions[request.id] = sessions.get(request.after or "", request.id)
            if answers.get(request.id):
                case = Case("workload", number, request.id, tuple(tokens), request.max_tokens)
                cases.setdefault(first, []).append(case)
        order = list(cases)
        Random(f"plan {self.wanted.seed}").shuffle(order)
        halves: tuple[list[Case], list[Case]] = ([], [])
        for first in order:
            half = min(halves, key=len)
            half.extend(cases[first])
        for half in halves:
            Random(f"cases {self.wanted.seed}").shuffle(half)
        return halves[0][: RUNGS[-1]], halves[1][: RUNGS[-1]]

    def _items(self, engine: Engine) -> dict[str, list[Case]]:
        names = list(dict.fromkeys(floor.metric for floor in self.wanted.floors.scores))
        if not names:
            return {}
        assert engine.tokenizer is not None, "checked before: tasks are text"
        found: dict[str, list[Case]] = {name: [] for name in names}
        made = task_cases(
            names, ITEMS, self.wanted.seed, (), engine.tokenizer, engine.max_model_len
        )
        for case in made.cases:
            if case.interview is None and case.score is not None:
                found[case.source].append(case)
        for name, own in found.items():
            if not own:
                raise ConfigError(
                    f"no item of the task {name!r} can be scored in a context of "
                    f"{engine.max_model_len} tokens; leave it out of the floor."
                )
        return found

    # -- the plan ------------------------------------------------------------------------------

    def _plan(self, ground: Ground, judge: Judge | None) -> Plan:
        select, verify = ground.select, ground.verify
        wanted, words = self.wanted, list[str]()
        space = wanted.space if judge is not None else wanted.space.exact_only()
        if judge is not None and min(len(select), len(verify)) < LEAST_CASES:
            words.append(
                f"Answers to judge by: {len(select) + len(verify)}, of which half choose and half "
                f"prove. With fewer than {LEAST_CASES} of each, intervals are too wide to decide, "
                "so that only exact settings were looked at."
            )
            judge, space = None, wanted.space.exact_only()
        costs = self.costs(ground.requests, ground.answers)
        searching = Searching(
            space=space,
            floors=wanted.floors,
            goal=wanted.goal,
            predict=costs.predict,
            judge=judge,
            log=self.log,
            context=ground.context,
            select=select,
            verify=verify,
            items=ITEMS,
            measure=(lambda point: costs.measure(point, self._check_time))
            if wanted.rounds
            else None,
            predict_until=self._until(PREDICT_SHARE, time.monotonic()),
            pause=self._pause,
            tell=self.tell,
        )
        searching.figures[Point()] = costs.predict(Point())
        found = searching.run()
        self._limit(1.0)
        chosen = found.holding[0] if found.holding else _default(searching)
        gains, measured = self._measured(costs, chosen, searching)
        default_holds = any(not each.point.changes for each in found.holding)
        if gains is not None and gains[0] <= 1.0 and default_holds:
            words.append(
                f"{chosen.point} was predicted to be cheaper and measured not to be "
                f"({gains[0]:.2f} times), so that the default stays."
            )
            chosen, gains = _default(searching), None
        return self._told(searching, found, ground, chosen, gains, measured, words)

    def _measured(
        self, costs: Costs, chosen: Candidate, searching: Searching
    ) -> tuple[tuple[float, Interval | None] | None, dict[Point, Figures]]:
        """Default and chosen in turns: how many times less the chosen one takes, and the medians of
        each."""
        if not self.wanted.rounds:
            return None, {}
        points = list(dict.fromkeys([Point(), chosen.point]))
        runs: dict[Point, list[Figures]] = {point: [] for point in points}
        for number in range(self.wanted.rounds):
            for point in points[:: -1 if number % 2 else 1]:
                try:
                    self._pause()
                    runs[point].append(costs.measure(point, self._check_time))
                except OutOfTime:
                    break
            else:
                self.tell(f"round {number + 1} of {self.wanted.rounds} of the measurement is done")
                continue
            break
        whole = min(map(len, runs.values()))
        medians = {p: _medians(own[:whole]) for p, own in runs.items() if whole}
        if not whole or len(points) == 1:
            return None, medians
        before, after = ([f[self.wanted.goal] for f in runs[p][:whole]] for p in points)
        return paired_ratio(before, after), medians

    def _told(
        self,
        searching: Searching,
        found: Found,
        ground: Ground,
        chosen: Candidate,
        gains: tuple[float, Interval | None] | None,
        measured: Mapping[Point, Figures],
        words: list[str],
    ) -> Plan:
        wanted, judge, cases = self.wanted, searching.judge, [*ground.select, *ground.verify]
        default = tried(searching, _default(searching), cases)
        default.measured = measured.get(Point(), {})
        best = tried(searching, chosen, cases)
        best.verdict, best.measured = "chosen", measured.get(chosen.point, {})
        seen = {chosen.point, Point()}
        others = []
        for each in [*found.holding, *found.candidates]:
            if each.point not in seen:
                seen.add(each.point)
                others.append(tried(searching, each, cases))
        goal = wanted.goal
        gain = searching.figures[Point()][goal] / chosen.goal
        figures = best.measured or best.predicted
        missed = [
            f"{floor} ({figures[floor.metric]:.4g})"
            for floor in wanted.floors.missed(figures, wanted.floors.speeds)
        ]
        words += explain(wanted, chosen.point, gain, gains, found, missed, searching)
        busy = self._others.share()
        if busy is not None and busy >= BUSY:
            words.append(
                f"Other programs took {busy:.0%} of the processors' time meanwhile, so that what "
                "is said in seconds may be too much; plan again when the machine is idle."
            )
        return Plan(
            made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=wanted.base.model,
            numerics_id=ground.numerics_id,
            machine=wanted.machine,
            workload=wanted.workload,
            requests=len(ground.requests),
            rate=wanted.rate,
            floors=str(wanted.floors),
            goal=goal,
            default=default,
            chosen=best,
            tried=others,
            left_out=found.left_out,
            contributions=self._contributions(searching, chosen.point, cases, judge),
            words=words,
            missed=missed,
            ended=found.ended,
            seconds=round(time.monotonic() - self._began, 3),
            others=busy,
            space=found.space,
            judged=0 if judge is None else len(judge.ran - {Point()}),
            judged_cases=0 if judge is None else judge.judged,
            timed=bool(measured),
            gain=gain,
            measured_gain=None if gains is None else gains[0],
            measured_interval=None if gains is None else gains[1],
        )

    def _contributions(
        self, searching: Searching, point: Point, cases: Sequence[Case], judge: Judge | None
    ) -> list[Contribution]:
        """What each change of the chosen configuration is worth: the same without it."""
        goal = searching.corrected(point, searching.figures[point][self.wanted.goal])
        found = []
        for setting, value in point.changes:
            less = point.without(setting)
            try:
                figures = searching.figures_of(less)
                if judge is not None and not searching.space.exact(less):
                    judge.judge(less, cases=cases[: RUNGS[0]], items=1)
            except OutOfTime:
                figures = searching.figures.get(less)
            if figures is None:
                continue
            found.append(
                Contribution(
                    setting=setting,
                    value=value,
                    goal_without=searching.corrected(less, figures[self.wanted.goal]) / goal,
                    quality_without={} if judge is None else judge.figures(less, cases),
                )
            )
        return found

    # -- time ----------------------------------------------------------------------------------

    def _limit(self, share: float) -> None:
        self._ends = self._until(share)

    def _until(self, share: float, since: float | None = None) -> float | None:
        """When this share of the time is over, or of what is left of it since then."""
        if self.wanted.time_s is None:
            return None
        begin = self._began if since is None else since
        return begin + share * (self._began + self.wanted.time_s - begin)

    def _pause(self) -> None:
        """Wait for others; end if the time is up."""
        self.wait()
        self._check_time()

    def _check_time(self) -> None:
        if self._ends is not None and time.monotonic() > self._ends:
            raise OutOfTime


def _default(searching: Searching) -> Candidate:
    goal = searching.figures[Point()][searching.goal]
    return Candidate(Point(), goal, goal, simulated=True, verdict="default")


def explain(
    wanted: Wanted,
    chosen: Point,
    gain: float,
    measured: tuple[float, Interval | None] | None,
    found: Found,
    slow: Sequence[str],
    searching: Searching,
) -> list[str]:
    """Why this configuration, in sentences."""
    words = []
    if found.ended == OUT_OF_TIME:
        if found.unpredicted:
            words.append(
                f"The part of {wanted.time_s:.0f} s in which choices are predicted was over before "
                f"{found.unpredicted} of {searching.space.size} were; give the plan more --time, "
                "or fewer --requests."
            )
        else:
            words.append(
                f"The time of {wanted.time_s:.0f} s was up before all that may pay was decided; "
                "run it again with the same --log to go on."
            )
    if not chosen.changes:
        above = " above the floor" if wanted.floors.every else ""
        if slow:
            words.append("Nothing that was found keeps to the floor, so that the default stays.")
        elif found.ended == OUT_OF_TIME:
            words.append(f"Nothing that was decided beats the default{above}.")
        else:
            words.append(f"Nothing beats the default{above}.")
    else:
        told = f"{chosen} takes {1 / gain:.2f} of the default's {wanted.goal}, as predicted"
        if measured is not None:
            ratio, interval = measured
            between = (
                "" if interval is None else f" ({1 / interval[1]:.2f} to {1 / interval[0]:.2f})"
            )
            told += f", and {1 / ratio:.2f}{between} as measured in turns"
            if interval is None or interval[0] <= 1:
                told += ", which does not prove that it is less"
        words.append(f"{told}.")
    if slow:
        nearest = ""
        if found.nearest is not None:
            nearest = f" The nearest that was found is {found.nearest.point}: {found.misses}."
        words.append(f"The chosen configuration misses {', '.join(slow)}.{nearest}")
    if searching.judge is None and wanted.floors.of_quality:
        return words
    if not wanted.floors.of_quality:
        words.append("No floor of quality was stated, so that only exact settings were looked at.")
        return words
    missing = sorted(
        (
            each
            for each in found.candidates
            if each.verdict in ("misses", "undecided", "unverified")
        ),
        key=lambda each: each.goal,
    )
    words += [
        f"{each.point} would take {each.goal / searching.figures[Point()][wanted.goal]:.2f} of the "
        f"default's {wanted.goal}, but {each.why}."
        for each in missing[:3]
    ]
    return words


def _medians(runs: Sequence[Figures]) -> Figures:
    return {name: median(run[name] for run in runs if name in run) for name in runs[0]}
