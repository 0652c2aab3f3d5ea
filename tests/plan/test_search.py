"""The search against exhaustive search, on configurations whose costs and losses are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.lab.cases import Case
from ockham.plan.floors import Floor, Floors, parse_floors
from ockham.plan.judging import Judge, Loss
from ockham.plan.log import Log, Record
from ockham.plan.result import Figures
from ockham.plan.search import Found, OutOfTime, Searching
from ockham.plan.space import Choice, Point, Space

SETTINGS = {
    "quantization": 5,
    "kv_cache_dtype": 3,
    "keep": 4,
    "max_num_seqs": 2,
}
EXACT = ("max_num_seqs",)


def space_of(choices: Mapping[str, int] = SETTINGS) -> Space:
    return Space(
        {
            name: tuple(Choice(name, n, name in EXACT) for n in range(1, count + 1))
            for name, count in choices.items()
        },
        {},
    )


class World:
    """Configurations whose cost and loss are known: each change multiplies the cost and adds to the
    loss, and together they are up to a tenth off."""

    def __init__(self, seed: int, space: Space) -> None:
        rng = Random(f"world {seed}")
        self.cost: dict[tuple[str, object], float] = {}
        self.loss: dict[tuple[str, object], float] = {}
        for name, choices in space.choices.items():
            for each in choices:
                self.cost[name, each.value] = rng.uniform(0.6, 1.1)
                exact = 0.0 if each.exact else 10 ** rng.uniform(-4, -0.5)
                self.loss[name, each.value] = exact
        self.predicted = 0

    def figures(self, point: Point) -> Figures:
        self.predicted += 1
        rng = Random(f"{point} cost")
        together = rng.uniform(0.95, 1.05) if len(point.changes) > 1 else 1.0
        seconds = math.prod(self.cost[change] for change in point.changes) * together
        return {"seconds": seconds, "ttft_p95": seconds / 2}

    def mean_loss(self, point: Point) -> float:
        rng = Random(f"{point} loss")
        together = rng.uniform(0.9, 1.1) if len(point.changes) > 1 else 1.0
        return math.fsum(self.loss[change] for change in point.changes) * together


class KnownJudge(Judge):
    """Judges by a world: the losses of cases lie around the mean, as those of texts do."""

    def __init__(self, world: World, log: Log, directory: Path) -> None:
        super().__init__(EngineConfig(), log, "here", directory)
        self.world = world

    def judge(self, point: Point, *, cases: Sequence[Case], items: int) -> bool:
        for case in cases:
            if (point, case.key) not in self._known:
                self._add(self.record(point, case))
        return True

    def record(self, point: Point, case: Case) -> Record:
        rng = np.random.default_rng(crc32(f"{point} {case.key}".encode()))
        kl = self.world.mean_loss(point) * rng.gamma(2.0, 0.5, 32)
        return Record(
            context="here", kind="distance", changes=point.settings, case=case.key, kl=kl.tolist()
        )


CASES = [Case("workload", n, "", (1, 2), 4) for n in range(64)]


def searching(
    world: World, space: Space, floors: Floors, directory: Path, log: Log | None = None
) -> Searching:
    log = log or Log()
    return Searching(
        space=space,
        floors=floors,
        goal="seconds",
        predict=world.figures,
        judge=KnownJudge(world, log, directory) if floors.of_quality else None,
        log=log,
        context="here",
        select=CASES[:32],
        verify=CASES[32:],
        items=1,
        figures={Point(): {"seconds": 1.0, "ttft_p95": 0.5}},
    )


def best(world: World, space: Space, floor: float) -> float:
    """Of every configuration whose true loss is within the floor."""
    singles = [Point(((c.setting, c.value),)) for own in space.choices.values() for c in own]
    return min(
        world.figures(point)["seconds"]
        for point in space.products(singles)
        if world.mean_loss(point) <= floor
    )


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_what_exhaustive_search_finds_with_few_measurements(
    seed: int, tmp_path: Path
) -> None:
    """Of 360 configurations, within 3% of the cheapest that surely holds."""
    space = space_of()
    world = World(seed, space)
    floors = parse_floors("kl<=0.02", [])
    search = searching(world, space, floors, tmp_path)
    found = search.run()
    assert isinstance(search.judge, KnownJudge)
    chosen = found.holding[0]
    assert world.mean_loss(chosen.point) <= 0.02
    # A configuration at the floor cannot be proven; one a fifth below it can.
    assert chosen.goal <= 1.03 * best(world, space, 0.02 * 0.8)
    assert len(search.judge.ran) <= 0.15 * 360


def test_a_second_search_with_the_log_measures_less(tmp_path: Path) -> None:
    """Of the same workload: nothing. Of one like it: the log says where to look."""
    space = space_of()
    floors = parse_floors("kl<=0.02", [])
    world, log = World(3, space), Log()
    first = searching(world, space, floors, tmp_path, log)
    before = first.run()
    again = searching(world, space, floors, tmp_path, log)
    after = again.run()
    assert isinstance(first.judge, KnownJudge)
    assert isinstance(again.judge, KnownJudge)
    assert [each.point for each in after.holding[:1]] == [each.point for each in before.holding[:1]]
    assert again.judge.judged == 0
    elsewhere = Log()
    elsewhere.records = [
        Record(
            context="there", kind=r.kind, changes=r.changes, case=r.case, kl=[1.2 * v for v in r.kl]
        )
        for r in log.records
    ]
    for context in ("here", "there"):
        facts: dict[str, str | float] = {"model": "m", "prompt_tokens": 9.0, "answer_tokens": 9.0}
        elsewhere.describe(context, facts)
    third = searching(world, space, floors, tmp_path, elsewhere)
    told = third.run()
    assert isinstance(third.judge, KnownJudge)
    assert told.holding[0].goal <= 1.03 * before.holding[0].goal
    assert third.judge.judged <= first.judge.judged / 2


def test_without_a_floor_of_quality_only_exact_settings_are_chosen(tmp_path: Path) -> None:
    space = space_of()
    world = World(1, space)
    world.cost["max_num_seqs", 1] = 0.8
    found = searching(world, space, parse_floors("ttft_p95<=9", []), tmp_path).run()
    assert found.holding[0].point == Point((("max_num_seqs", 1),))


def test_where_answers_are_too_few_to_judge_by_exact_settings_that_pay_are_chosen(
    tmp_path: Path,
) -> None:
    """The floor is stated, and nobody judges."""
    space = space_of().exact_only()
    world = World(1, space)
    world.cost |= {("max_num_seqs", 1): 0.7, ("max_num_seqs", 2): 1.0}
    search = searching(world, space, parse_floors("kl<=0.5", []), tmp_path)
    search.judge = None
    chosen = search.run().holding[0].point
    assert chosen.changes == (("max_num_seqs", 1),)


def test_a_choice_that_breaks_a_bound_on_speed_is_not_chosen(tmp_path: Path) -> None:
    space = space_of({"max_num_seqs": 2})
    world = World(1, space)
    world.cost = {("max_num_seqs", 1): 0.5, ("max_num_seqs", 2): 0.7}

    def figures(point: Point) -> Figures:
        slow = point == Point((("max_num_seqs", 1),))
        return {**world.figures(point), "ttft_p95": 3.0 if slow else 1.0}

    search = searching(world, space, parse_floors("ttft_p95<=2", []), tmp_path)
    search.predict = figures
    assert search.run().holding[0].point == Point((("max_num_seqs", 2),))


def test_where_nothing_is_quick_enough_the_nearest_is_told(tmp_path: Path) -> None:
    space = space_of({"max_num_seqs": 2})
    world = World(1, space)
    world.cost = {("max_num_seqs", 1): 0.5, ("max_num_seqs", 2): 0.7}
    found = searching(world, space, parse_floors("ttft_p95<=0.1", []), tmp_path).run()
    assert not found.holding
    assert found.nearest is not None
    assert found.nearest.point == Point((("max_num_seqs", 1),))


def test_what_was_found_stands_when_the_time_is_up(tmp_path: Path) -> None:
    space = space_of()
    search = searching(World(0, space), space, parse_floors("kl<=0.02", []), tmp_path)
    calls = 0

    def pause() -> None:
        nonlocal calls
        calls += 1
        if calls > 16:
            raise OutOfTime

    search.pause = pause
    found: Found = search.run()
    assert found.ended == "the time was up"
    assert found.holding
    assert found.holding[0].point == Point() or found.holding[0].verdict == "holds"


def test_choices_that_were_not_predicted_in_time_are_told_apart(tmp_path: Path) -> None:
    space = space_of({"max_num_seqs": 2, "keep": 4})
    world = World(1, space)
    world.cost = dict.fromkeys(world.cost, 1.2)
    told: list[str] = []
    search = searching(world, space, parse_floors("kl<=0.02", []), tmp_path)
    search.tell = told.append
    search.predict_until = 0.0  # it is over, and as nothing pays yet, there is nothing else to do
    assert search.run().unpredicted == 0
    assert told == ["0 of 6 choices pay alone"]
    told.clear()
    world.cost["max_num_seqs", 1] = 0.5
    search.figures = {Point(): search.figures[Point()]}
    assert search.run().unpredicted == 5
    assert told[0] == "1 of 1 choices pay alone; the time was up before 5 more were predicted"

    def late() -> None:
        raise OutOfTime

    search.pause, search.figures = late, {Point(): search.figures[Point()]}
    found = search.run()
    assert (found.unpredicted, found.ended) == (6, "the time was up")


def test_what_cannot_run_is_left_out_with_its_reason(tmp_path: Path) -> None:
    space = space_of({"max_num_seqs": 2})
    search = searching(World(0, space), space, Floors(), tmp_path)

    def refuse(point: Point) -> Figures:
        raise ConfigError("not here.")

    search.predict = refuse
    found = search.run()
    assert set(found.left_out.values()) == {"not here."}
    assert found.holding[0].point == Point()


def test_what_a_divergence_does_not_see_is_not_chosen_under_one(tmp_path: Path) -> None:
    """A verifier takes other tokens, and leaves the distributions as they are."""
    choice = Choice("verifier", "lenient", False, "verifier/lenient")
    space = Space({"verifier": (choice,)}, {})
    assert choice.chooses
    assert not Choice("keep", "recent", False, "keep/recent").chooses
    world = World(0, space)
    world.cost["verifier", "lenient"] = 0.5
    found = searching(world, space, parse_floors("kl<=9", []), tmp_path).run()
    assert found.holding[0].point == Point()
    assert "takes other tokens" in found.left_out["verifier=lenient"]


def test_predictions_are_corrected_by_what_is_measured(tmp_path: Path) -> None:
    """One setting is predicted to take half and takes all: the other one is chosen."""
    space = space_of({"max_num_seqs": 2})
    world = World(0, space)
    world.cost = {("max_num_seqs", 1): 0.5, ("max_num_seqs", 2): 0.8}
    search = searching(world, space, Floors(), tmp_path)

    def measure(point: Point) -> Figures:
        slow = point == Point((("max_num_seqs", 1),))
        return {"seconds": 1.0} if slow else world.figures(point)

    search.measure = measure
    assert search.run().holding[0].point == Point((("max_num_seqs", 2),))


def test_floors_hold_on_cases_that_chose_nothing(tmp_path: Path) -> None:
    """Of a hundred searches among configurations near the floor, at most five choose one whose true
    loss is above it."""
    floors = parse_floors("kl<=0.02", [])
    wrong = 0
    for seed in range(100):
        space = space_of({"quantization": 4, "kv_cache_dtype": 3})
        world = World(seed, space)
        rng = Random(f"near {seed}")
        for change in world.loss:
            world.loss[change] = 0.02 * rng.uniform(0.3, 1.3)
        log = Log()
        search = searching(world, space, floors, tmp_path, log)
        assert isinstance(search.judge, KnownJudge)
        order = Random(f"cases {seed}").sample(range(10_000), 64)
        fresh = [Case("workload", n, str(seed), (1, 2), 4) for n in order]
        search.select, search.verify = fresh[:32], fresh[32:]
        chosen = search.run().holding[0]
        wrong += world.mean_loss(chosen.point) > 0.02
    assert wrong <= 5


def test_a_loss_of_few_cases_decides_nothing(tmp_path: Path) -> None:
    space = space_of({"quantization": 1})
    world = World(0, space)
    judge = KnownJudge(world, Log(), tmp_path)
    point = Point((("quantization", 1),))
    judge.judge(point, cases=CASES[:2], items=1)
    loss: Loss = judge.loss(point, Floor("kl", "<=", 0.02), CASES[:2], 0.9)
    assert not loss.holds
    assert not loss.misses
