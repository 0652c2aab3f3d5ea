"""A plan from beginning to end, on a tiny model: what it chooses, proves, tells, and keeps to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.rates import AttentionRate, ProductRate, Rates
from ockham.lab.workloads import Request
from ockham.plan import keeping
from ockham.plan.costs import Costs
from ockham.plan.floors import parse_floors
from ockham.plan.log import Log
from ockham.plan.planning import Planner, Wanted
from ockham.plan.report import explained, page, settings_yaml, told
from ockham.plan.result import Figures, Plan, frontier
from ockham.plan.search import OutOfTime
from ockham.plan.simulation import Prompted
from ockham.plan.space import Point, space_of
from tests.helpers.tiny import tiny_llama

FORMATS = ("fp32", "bf16", "int8", "int4", "int4dq", "nf4", "fp8")


class KnownRates:
    """A machine on which a weight takes as long as it has bytes."""

    def __init__(self, config: EngineConfig) -> None:
        self.rates = Rates(
            flops_per_s=1e9,
            read_bytes_per_s=1e7,
            products={name: self.product(name) for name in FORMATS},
            attention=AttentionRate(cell_s=1e-8, key_s=1e-9, stream=1.0),
            loop_s=1e-6,
            gate_value_s=1e-9,
            rotation_value_s=1e-9,
            logit_s=1e-9,
            step_s=1e-5,
            sequence_s=1e-6,
        )

    def product(self, form: str) -> ProductRate:
        return ProductRate(
            rows=(1, 64), weight_s=(1e-10, 64e-10), stream=1.0, exposed=0.5, value_s=1e-9
        )

    def attention(self, state_dtype: str) -> AttentionRate:
        return AttentionRate(cell_s=1e-8, key_s=1e-9, stream=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    model = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", intermediate_size=64)
    return EngineConfig(
        model=str(model),
        threads=1,
        max_model_len=256,
        kv_cache_memory_bytes=1 << 22,
        skip_tokenizer_init=True,
        weight_cache="off",
    )


def requests(count: int, tokens: int = 8) -> Prompted:
    rng = Random("plan")
    found = []
    for number in range(count):
        prompt = [rng.randrange(2, 97) for _ in range(rng.randrange(30, 60))]
        request = Request(id=f"r{number}", prompt_token_ids=prompt, max_tokens=tokens)
        found.append((request, prompt))
    return found


def planned(
    base: EngineConfig,
    floor: str,
    count: int = 40,
    log: Log | None = None,
    *,
    vary: Sequence[str] = ("kv_cache_dtype", "quantization"),
    seconds: float | None = None,
    rounds: int = 0,
) -> Plan:
    wanted = Wanted(
        base=base,
        workload="random",
        requests=requests(count),
        floors=parse_floors(floor, ["recall"]),
        goal="bytes",
        space=space_of(base).only(vary),
        time_s=seconds,
        rounds=rounds,
    )

    def costs(fitting: Prompted, answers: Mapping[str, Sequence[int]]) -> Costs:
        return Costs(base, fitting, answers, sources=KnownRates)

    return Planner(wanted, log or Log(), costs).make()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("log") / "log.jsonl")


@pytest.fixture(scope="module")
def plan(base: EngineConfig, log: Log) -> Plan:
    return planned(base, "kl<=0.05", log=log, rounds=1)


def test_a_plan_chooses_what_is_smaller_and_holds(plan: Plan) -> None:
    assert plan.chosen.changes
    assert plan.chosen.verdict == "chosen"
    assert plan.chosen.quality["kl"] <= 0.05
    assert plan.chosen.predicted["bytes"] < 0.6 * plan.default.predicted["bytes"]
    assert plan.gain > 1.5
    assert plan.timed
    assert plan.chosen.measured["bytes"] < plan.default.measured["bytes"]
    assert plan.ended == "all that may pay was decided"


def test_it_says_what_each_change_contributes(plan: Plan) -> None:
    assert {each.setting for each in plan.contributions} == set(plan.chosen.changes)
    assert all(each.goal_without > 1 for each in plan.contributions)


def test_a_second_plan_with_the_log_judges_nothing_anew(
    base: EngineConfig, plan: Plan, log: Log
) -> None:
    again = planned(base, "kl<=0.05", log=log)
    assert again.judged == 0
    assert again.chosen.changes == plan.chosen.changes


def test_a_timed_run_ends_when_the_time_is_up(base: EngineConfig) -> None:
    """In the middle of its steps: one answer of a large model may take minutes."""
    steps = 0

    def third() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise OutOfTime

    costs = Costs(base, requests(8), {}, sources=KnownRates)
    with pytest.raises(OutOfTime):
        costs.measure(Point(), third)
    assert steps == 3


@pytest.mark.parametrize("measured", [0.97, 1.03])
def test_what_is_measured_not_to_be_cheaper_is_not_chosen(
    base: EngineConfig, log: Log, monkeypatch: pytest.MonkeyPatch, measured: float
) -> None:
    timed = ((measured, (0.9, 1.1)), dict[Point, Figures]())
    monkeypatch.setattr(Planner, "_measured", lambda self, costs, chosen, searching: timed)
    plan = planned(base, "kl<=0.05", log=log)
    assert bool(plan.chosen.changes) == (measured > 1)
    assert any("so that the default stays" in line for line in plan.words) == (measured < 1)


def test_a_tighter_floor_chooses_less(base: EngineConfig, plan: Plan, log: Log) -> None:
    tight = planned(base, "kl<=0.00001", log=log)
    assert tight.chosen.predicted["bytes"] > plan.chosen.predicted["bytes"]


def test_without_a_floor_of_quality_a_plan_stays_exact(base: EngineConfig) -> None:
    exact = planned(base, "", vary=("quantization", "max_num_seqs"))
    assert set(exact.chosen.changes) <= {"max_num_seqs"}
    assert any("No floor of quality" in line for line in exact.words)


def test_a_tiny_workload_decides_nothing_and_stays_exact(base: EngineConfig) -> None:
    few = planned(base, "kl<=0.05", 6)
    assert not few.chosen.changes
    assert any("too wide to decide" in line for line in few.words)


def test_floors_that_nothing_meets_are_told(base: EngineConfig) -> None:
    missed = planned(base, "memory<=1000", vary=("max_num_seqs",))
    assert any("misses memory<=1000 (" in line for line in missed.words)
    assert missed.missed
    assert "Nothing that was found keeps to the floor, so that the default stays." in missed.words
    assert not planned(base, "", vary=("max_num_seqs",)).missed


def test_the_time_is_kept_to(base: EngineConfig) -> None:
    began = time.monotonic()
    short = planned(base, "kl<=0.05", vary=("kv_cache_dtype", "quantization", "keep"), seconds=3)
    assert time.monotonic() - began < 15  # a step of the plan is not cut
    assert short.ended in ("the time was up", "all that may pay was decided")


def test_too_little_time_is_told(base: EngineConfig) -> None:
    with pytest.raises(ConfigError, match="not enough to answer the workload even once"):
        planned(base, "", seconds=1e-6)


def test_a_workload_that_no_context_holds_is_refused(base: EngineConfig) -> None:
    with pytest.raises(ConfigError, match="fits into the context of 16 tokens"):
        planned(msgspec.structs.replace(base, max_model_len=16), "")


def test_the_settings_start_an_engine(plan: Plan, tmp_path: Path) -> None:
    text = settings_yaml(plan)
    settings = {name.replace("-", "_"): value for name, value in yaml.safe_load(text).items()}
    changes = {**plan.chosen.changes, "guard_floor": "kl<=0.05"}
    assert settings == {"model": plan.model, **changes}
    assert msgspec.convert(settings, EngineConfig).model == plan.model
    assert "# Floor: kl<=0.05." in text


def test_the_page_stands_alone_and_escapes_what_it_tells(plan: Plan) -> None:
    odd = msgspec.structs.replace(plan, workload="<script>alert(1)</script>")
    text = page(odd)
    assert "<script>" not in text
    assert "http" not in text
    assert text.count("<circle") >= 2
    for each in [plan.chosen, *plan.tried]:
        assert str(each.point) in text


def test_the_words_tell_what_became_of_everything(plan: Plan) -> None:
    text = "\n".join(explained(plan))
    for each in plan.tried:
        assert str(each.point) in text
    for name in plan.left_out:
        assert name in text
    assert "of the default's bytes" in "\n".join(told(plan))


def test_no_point_of_the_frontier_is_beaten(plan: Plan) -> None:
    points = [plan.default, plan.chosen, *plan.tried]
    best = frontier(points, "bytes")
    for each in best:
        for other in points:
            if "kl" in other.quality and other is not each:
                assert not (
                    other.quality["kl"] < each.quality.get("kl", 0.0)
                    and other.predicted["bytes"] < each.predicted["bytes"]
                )


def test_auto_takes_the_plan_and_says_so(
    plan: Plan, base: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))
    args = ["run", base.model, "--prompt-token-ids", "3,4", "-n", "2", "--skip-tokenizer-init"]
    plain = CliRunner().invoke(cli, [*args, "--auto"])
    assert plain.exit_code == 0, plain.output
    assert "the exact defaults" in plain.stderr
    assert "there is no plan for it" in plain.stderr
    keeping.keep(plan)
    taken = CliRunner().invoke(cli, [*args, "--auto", "--stats"])
    assert taken.exit_code == 0, taken.output
    (line,) = [line for line in taken.stderr.splitlines() if line.startswith("--auto")]
    for name, value in plan.chosen.changes.items():
        assert f"{name}={value}" in line
    assert "above the floor kl<=0.05" in line
    flags = ["--kv-cache-dtype", "float32", "--quantization", "fp32"]
    own = CliRunner().invoke(cli, [*args, "--auto", *flags])
    assert "given instead of the plan's" in own.stderr


def test_a_plan_of_another_machine_or_model_is_not_taken(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path))
    path = keeping.keep(plan)
    assert path is not None
    assert keeping.kept_plan(plan.model)[0] is not None
    kept = msgspec.json.decode(path.read_bytes(), type=keeping.Kept)
    kept.machine = "another"
    path.write_bytes(msgspec.json.encode(kept))
    assert "another machine" in keeping.kept_plan(plan.model)[1]
    path.write_text("{")
    assert "cannot be read" in keeping.kept_plan(plan.model)[1]
    assert keeping.kept_plan("no/such")[0] is None
    other = tiny_llama(tmp_path / "other", seed=1)
    assert "no plan" in keeping.kept_plan(str(other))[1]


def test_costs_ask_for_the_rates_of_every_format(base: EngineConfig) -> None:
    asked: list[str] = []

    class Asked(KnownRates):
        def __init__(self, config: EngineConfig) -> None:
            super().__init__(config)
            self.rates = dataclasses.replace(self.rates, products={"fp32": super().product("fp32")})

        def product(self, form: str) -> ProductRate:
            asked.append(form)
            return super().product(form)

    costs = Costs(base, requests(3), {}, sources=Asked)
    default = costs.predict(Point())
    asked.clear()
    smaller = costs.predict(Point.of({"quantization": "int4:32"}))
    assert "int4:32" in asked
    assert smaller["bytes"] < default["bytes"]
    assert smaller["seconds"] < default["seconds"]
