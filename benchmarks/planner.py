"""Whether plans are right: `python -m benchmarks.planner exhaustive|gains ...`.

`exhaustive` judges every configuration of a space of a few hundred on one workload, keeps what it
measured in a file (a run that was stopped goes on), and then lets plans search the same space with
the table as their judge: how near they come to the cheapest, with what share of the measurements,
and how often what they chose holds on cases that they did not see.

`gains` makes plans for workloads under one floor, each but the first once without a log and once
with what the workloads before it taught, and prints what each gained and measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from ockham.cli.plan import first_sessions
from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError
from ockham.engine.engine import Engine
from ockham.kernels.cores import allowed_cores
from ockham.lab.cases import Case
from ockham.lab.workloads import make_workload
from ockham.plan.costs import Costs, RateSource
from ockham.plan.floors import Floors, parse_floors
from ockham.plan.judging import Judge
from ockham.plan.keeping import this_machine
from ockham.plan.log import Log, Record
from ockham.plan.planning import Planner, Wanted
from ockham.plan.result import Figures
from ockham.plan.search import Searching
from ockham.plan.simulation import prompted
from ockham.plan.space import Point, Space, space_of

CHOICES: dict[str, tuple[str, ...]] = {
    "quantization": ("int8", "int4", "int4:64", "int4dq:64", "nf4", "nf4:32", "fp8", "sparse8"),
    "kv_cache_dtype": ("int8", "k=int8,v=int4", "int4"),
    "attention_pattern": ("minference:share=0.5", "streaming:heads=0.25", "quest:tokens=512"),
    "gate": (
        "skip_layers:part=attention",
        "skip_decode:least=0.9",
        "skip_feed_forward:threshold=0.98",
    ),
}
"""With the default of each, and without what the matrix of pairs refuses: 468 configurations."""
LOOKED_AT = 16
"""Cases that choose, and as many that prove, of a resampled plan."""


@dataclass
class Table:
    """What every configuration costs and loses, measured once."""

    space: Space
    points: list[Point]
    figures: dict[Point, Figures]
    records: dict[tuple[Point, str], Record]
    cases: list[Case]

    def loss(self, point: Point, cases: Sequence[Case]) -> float:
        """The mean KL divergence over cases."""
        if not point.changes:
            return 0.0
        found = [self.records[point, case.key].kl for case in cases]
        return sum(sum(kl) / len(kl) for kl in found) / len(found)


class TableJudge(Judge):
    """Takes measurements from a table, and counts them as if it made them."""

    def __init__(self, table: Table, base: EngineConfig, log: Log, directory: Path) -> None:
        super().__init__(base, log, "table", directory)
        self._table = table

    def judge(self, point: Point, *, cases: Sequence[Case], items: int) -> bool:
        for case in cases:
            if (point, case.key) not in self._known:
                record = self._table.records[point, case.key]
                self._add(msgspec.structs.replace(record, context="table"))
        return True


def wanted(
    base: EngineConfig,
    workload: str,
    requests: int,
    floors: Floors,
    space: Space,
    seconds: float | None = None,
) -> Wanted:
    """The first requests of a workload, to be planned for."""
    name, _, given = workload.partition(":")
    settings = {
        key: int(value) for key, _, value in (p.partition("=") for p in given.split(":") if p)
    }
    made = first_sessions(make_workload(name, settings).requests(0), requests)
    return Wanted(
        base=base,
        workload=workload,
        requests=prompted(base, made),
        floors=floors,
        goal="seconds",
        space=space,
        time_s=seconds,
        machine=this_machine(),
    )


def small_space(base: EngineConfig) -> Space:
    space = space_of(base).only(list(CHOICES))
    kept = {
        name: tuple(each for each in own if each.value in CHOICES[name])
        for name, own in space.choices.items()
    }
    return msgspec.structs.replace(space, choices=kept)


def measure_table(base: EngineConfig, workload: str, requests: int, out: Path) -> Table:
    """Every configuration on every case; what was measured before is read from `out`."""
    space = small_space(base)
    log = Log(out / "table.jsonl")
    floors = parse_floors("kl<=0.02", [])
    planner = Planner(
        wanted(base, workload, requests, floors, space),
        log,
        lambda fitting, answers: Costs(
            base,
            fitting,
            answers,
            sources=lambda config: RateSource(config, log, this_machine()),
        ),
        tell=print,
    )
    singles = [Point(((c.setting, c.value),)) for own in space.choices.values() for c in own]
    points = [*space.products(singles)]
    engine = Engine(base)
    figures: dict[Point, Figures] = {}
    with tempfile.TemporaryDirectory() as directory:
        ground = planner.ground(engine)
        judge = planner.judge(engine, ground, Path(directory))
        engine.close()
        costs = planner.costs(ground.requests, ground.answers)
        cases = [*ground.select, *ground.verify]
        kept: list[Point] = []
        for number, point in enumerate(points, 1):
            if not point.changes or judge.judge(point, cases=cases, items=0):
                kept.append(point)
            print(f"{number} of {len(points)}: {point}", flush=True)
        stored = out / "figures.json"
        known = json.loads(stored.read_text()) if stored.exists() else {}
        for point in kept:
            if str(point) not in known:
                known[str(point)] = costs.predict(point)
        stored.write_text(json.dumps(known))
        figures = {point: known[str(point)] for point in kept}
    records = {(r.point, r.case): r for r in log.of(ground.context, "distance")}
    return Table(space, kept, figures, records, cases)


def exhaustive(base: EngineConfig, workload: str, requests: int, out: Path, plans: int) -> None:
    table = measure_table(base, workload, requests, out)
    print(f"{len(table.points)} configurations, {len(table.cases)} cases")
    for bound in (0.01, 0.02, 0.05, 0.1):
        told: list[tuple[float, float, float, float]] = []
        for number in range(plans):
            told.append(resampled(table, base, bound, number))
        columns = [*zip(*told, strict=True)]
        over = sorted(columns[0])
        print(
            f"kl<={bound}: {sum(columns[2])} of {plans} hold over all cases, "
            f"{sum(columns[3])} on the unseen ones; over the cheapest that holds: median "
            f"{over[len(over) // 2]:.3f}, 95th percentile {over[int(0.95 * len(over))]:.3f}; "
            f"measured: {100 * sum(columns[1]) / plans:.1f}% on average"
        )


def resampled(
    table: Table, base: EngineConfig, bound: float, number: int
) -> tuple[float, float, float, float]:
    """One plan on cases drawn at random: its cost over the cheapest's, the share of measurements,
    and whether it holds over all cases, and over those that it did not see."""
    cases = Random(f"resampled {number}").sample(table.cases, len(table.cases))
    select, verify = cases[:LOOKED_AT], cases[LOOKED_AT : 2 * LOOKED_AT]
    unseen = cases[2 * LOOKED_AT :]
    with tempfile.TemporaryDirectory() as directory:
        log = Log()
        judge = TableJudge(table, base, log, Path(directory))
        searching = Searching(
            space=table.space,
            floors=parse_floors(f"kl<={bound}", []),
            goal="seconds",
            predict=lambda point: predicted(table, point),
            judge=judge,
            log=log,
            context="table",
            select=select,
            verify=verify,
            items=0,
        )
        chosen = searching.run().holding[0]
    best = min(
        table.figures[point]["seconds"]
        for point in table.points
        if table.loss(point, table.cases) <= bound
    )
    every = len(table.points) * 2 * LOOKED_AT
    return (
        table.figures[chosen.point]["seconds"] / best,
        judge.judged / every,
        float(table.loss(chosen.point, table.cases) <= bound),
        float(table.loss(chosen.point, unseen) <= bound),
    )


def predicted(table: Table, point: Point) -> Figures:
    if point not in table.figures:
        raise OckhamError(f"{point} cannot run.")
    return table.figures[point]


def gains(
    base: EngineConfig, workloads: Sequence[str], floor: str, requests: int, seconds: float
) -> None:
    shared = Log()
    space = space_of(base, cores=base.threads or allowed_cores())
    print(f"{base.model}, {floor}; predicted and measured: default over chosen")
    for workload in workloads:
        logs = ((Log(), "without a log"), (shared, "with one"))
        for log, which in logs if shared.records else ((shared, "the first"),):
            floors = parse_floors(floor, [])
            planner = Planner(
                wanted(base, workload, requests, floors, space, seconds),
                log,
                lambda fitting, answers, log=log: Costs(  # type: ignore[misc]
                    base,
                    fitting,
                    answers,
                    sources=lambda config: RateSource(config, log, this_machine()),
                ),
            )
            plan = planner.make()
            measured = "not timed" if plan.measured_gain is None else f"{plan.measured_gain:.2f}"
            kl = plan.chosen.quality.get("kl", 0.0)
            print(
                f"{workload:<18} {which:<14} {plan.gain:5.2f} {measured:>9}  kl {kl:.4f}  judged "
                f"{plan.judged:3} ({plan.judged_cases} cases)  {plan.seconds:4.0f} s  "
                f"{plan.ended}  {plan.chosen.point}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("exhaustive", "gains"))
    parser.add_argument("--model", default="lab")
    parser.add_argument("--workloads", default="documents:sentences=4", help="NAME:SETTING=N,...")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--floor", default="kl<=0.02")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each plan of `gains`")
    parser.add_argument("--plans", type=int, default=100, help="resampled ones of `exhaustive`")
    parser.add_argument("--out", type=Path, default=None, help="directory of `exhaustive`'s table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, default=None)
    args = parser.parse_args()
    base = EngineConfig(model=args.model, threads=args.threads, max_model_len=args.max_model_len)
    names = args.workloads.split(",")
    if args.what == "gains":
        gains(base, names, args.floor, args.requests, args.seconds)
        return
    if args.out is None:
        parser.error("exhaustive needs --out DIRECTORY.")
    args.out.mkdir(parents=True, exist_ok=True)
    exhaustive(base, names[0], args.requests, args.out, args.plans)


if __name__ == "__main__":
    main()
