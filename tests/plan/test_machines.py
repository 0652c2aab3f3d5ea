"""Other machines are read, scaled to, and mixed as cheaply as exhaustive search mixes them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from ockham import __version__
from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, DoesNotFit
from ockham.core.rates import Rates
from ockham.lab.workloads import Request
from ockham.plan.machines import (
    Bucket,
    Machine,
    MachineLimits,
    Priced,
    cheapest,
    cheapest_mix,
    histogram,
    parse_machines,
    rates_on,
    read_machine,
    sustained,
)
from ockham.plan.simulation import Prompted, simulate

LAB = EngineConfig(threads=1, speculative_config="none", max_model_len=1024)
ONE = MachineLimits(1, 2e10, 5e10, 1e11, 2e11)


def machine(name: str, times: float = 1.0, memory_bytes: int = 4 << 30) -> Machine:
    """One that is so many times as fast as the rates of the tests."""
    limits = MachineLimits(1, 2e10 * times, 5e10 * times, 1e11 * times, 2e11 * times)
    return Machine(name, (limits,), memory_bytes)


def write(path: Path, **changes: Any) -> Path:
    report = {
        "ockham": __version__,
        "processor": "a processor",
        "memory_allowed_bytes": 8 << 30,
        "limits": [msgspec.to_builtins(ONE)],
        **changes,
    }
    path.write_text(json.dumps({name: v for name, v in report.items() if v is not None}))
    return path


def workload(sizes: list[tuple[int, int]]) -> Prompted:
    return [
        (Request(id=f"r{i}", prompt_token_ids=[1] * prompt, max_tokens=answer), [1] * prompt)
        for i, (prompt, answer) in enumerate(sizes)
    ]


# -- files -----------------------------------------------------------------------------------------


def test_what_doctor_writes_is_read(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "lab", "--json"])
    assert done.exit_code == 0, done.output
    path = tmp_path / "here.json"
    path.write_text(done.stdout)
    found = read_machine(path)
    assert found.name == "here"
    assert found.best.threads >= found.one_thread.threads == 1
    assert found.best.read_bytes_per_s > 1e8
    assert found.memory_bytes > 1 << 28


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ockham": "0.0.7"}, "was written by Ockham 0.0.7, and this is"),
        ({"limits": []}, "has no limits of the machine; .*without --no-measure"),
        ({"limits": [{"threads": 1}]}, "describes no machine"),
        ({"limits": None}, "describes no machine"),
        ({"ockham": None}, "describes no machine"),
        ({"limits": [{**msgspec.to_builtins(ONE), "read_bytes_per_s": 0}]}, "that no machine has"),
        ({"memory_allowed_bytes": 0}, "has no limits of the machine"),
    ],
)
def test_a_file_that_does_not_do_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_machine(write(tmp_path / "a.json", **changes))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_machine(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("not json")
    with pytest.raises(ConfigError, match="describes no machine"):
        read_machine(tmp_path / "text.json")


def test_machines_and_prices_are_read(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.json"), write(tmp_path / "b.json")
    found = parse_machines(f"{one}:0.10,{other}:0.35")
    assert [(each.machine.name, each.per_hour) for each in found] == [("a", 0.1), ("b", 0.35)]
    for wrong in (f"{one}", f"{one}:free", f"{one}:-1", f"{one}:0", f"{one}:inf", f"{one}:nan"):
        with pytest.raises(ConfigError, match="must name a file and a price"):
            parse_machines(wrong)
    with pytest.raises(ConfigError, match="two machines are called 'a'"):
        parse_machines(f"{one}:0.10,{one}:0.35")
    with pytest.raises(ConfigError, match="no machine is named"):
        parse_machines(",")


# -- rates -----------------------------------------------------------------------------------------


def test_a_machine_twice_as_fast_takes_half_as_long(rates: Rates) -> None:
    same = rates_on(machine("a"), rates, "bf16", 5e10)
    assert same.products == rates.products
    twice = rates_on(machine("b", 2.0), rates, "bf16", 5e10)
    requests = workload([(200, 30)] * 3)
    seconds = [
        simulate(LAB, requests, rates=each, rate=math.inf, factor=0.0).seconds
        for each in (same, twice)
    ]
    assert seconds[1] == pytest.approx(seconds[0] / 2, rel=1e-6)


def test_a_machine_without_the_arithmetic_is_refused(rates: Rates) -> None:
    plain = Machine("plain", (MachineLimits(2, 1e10, 1e10),), 1 << 30)
    assert rates_on(plain, rates, "fp32", 1e10).flops_per_s == 1e10
    with pytest.raises(ConfigError, match="'plain' has no rate of int8"):
        rates_on(plain, rates, "int8", 1e10)


def test_a_model_must_fit_the_other_machine(rates: Rates) -> None:
    with pytest.raises(DoesNotFit):
        simulate(LAB, workload([(10, 2)]), rates=rates, available_bytes=1 << 20)


# -- loads -----------------------------------------------------------------------------------------


def test_buckets_hold_the_whole_rate() -> None:
    found = histogram(workload([(20, 5), (30, 6), (500, 5), (20, 300)]), 8.0)
    assert found == [Bucket(25, 6, 4.0), Bucket(20, 300, 2.0), Bucket(500, 5, 2.0)]
    with pytest.raises(ConfigError, match="no request"):
        histogram([], 1.0)
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="the rate must be above 0"):
            histogram(workload([(1, 1)]), rate)


def test_a_tighter_target_sustains_less(rates: Rates) -> None:
    bucket = Bucket(200, 20, 1.0)
    loose = sustained(LAB, bucket, {"ttft_p95": 10.0}, rates).rate
    tight = sustained(LAB, bucket, {"ttft_p95": 0.02}, rates).rate
    assert 0.0 < tight < loose
    # At the rate that was found the target is met.
    hopeless = sustained(LAB, bucket, {"ttft_p95": 1e-6}, rates)
    assert hopeless.rate == 0.0
    assert hopeless.misses["ttft_p95"] > 1e-6
    faster = rates_on(machine("b", 3.0), rates, "bf16", 5e10)
    assert sustained(LAB, bucket, {"ttft_p95": 0.02}, faster).rate > tight


@pytest.mark.parametrize(
    "target", [{}, {"tokens_per_s": 5.0}, {"ttft_p90": 1.0}, {"ttft_p95": 0.0}]
)
def test_a_target_is_of_latencies(rates: Rates, target: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        sustained(LAB, Bucket(10, 2, 1.0), target, rates)


# -- mixes -----------------------------------------------------------------------------------------


def exhaustive(prices: list[float], needs: list[list[float]], slices: int) -> float | None:
    """The least price, over all ways to give slices to kinds of machines."""
    kinds, best = len(prices), None
    ways = [way for way in itertools.product(range(slices + 1), repeat=kinds) if sum(way) == slices]
    for given in itertools.product(ways, repeat=len(needs[0])):
        loads = [0.0] * kinds
        for bucket, way in enumerate(given):
            for kind, count in enumerate(way):
                if count:
                    loads[kind] += count * needs[kind][bucket]
        if all(math.isfinite(load) for load in loads):
            price = sum(p * math.ceil(load - 1e-9) for p, load in zip(prices, loads, strict=True))
            best = price if best is None else min(best, price)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_mix_is_as_cheap_as_exhaustive_search_finds(seed: int) -> None:
    rng = Random(seed)
    kinds, buckets, slices = rng.choice([(2, 2, 4), (3, 2, 3), (2, 3, 3)])
    prices = [round(rng.uniform(0.1, 2.0), 2) for _ in range(kinds)]
    needs = [
        [math.inf if rng.random() < 0.15 else rng.uniform(0.05, 1.2) for _ in range(buckets)]
        for _ in range(kinds)
    ]
    best = exhaustive(prices, needs, slices)
    found = cheapest(prices, needs, slices)
    if best is None:
        assert found is None
        return
    assert found is not None
    counts, given = found
    assert sum(p * n for p, n in zip(prices, counts, strict=True)) == pytest.approx(best)
    for bucket in range(buckets):
        assert sum(own[bucket] for own in given) == slices
    for count, own, need in zip(counts, given, needs, strict=True):
        taken = [n * each for n, each in zip(own, need, strict=True) if n]
        assert sum(taken) <= count + 1e-6


def test_each_machine_gets_what_it_does_best() -> None:
    """One kind is cheap for short requests, the other for long ones."""
    counts, given = cheapest([1.0, 1.0], [[0.1, 10.0], [10.0, 0.1]], 10) or ([], [])
    assert counts == [1, 1]
    assert given == [[10, 0], [0, 10]]


def test_a_load_gets_the_cheapest_machines(rates: Rates) -> None:
    requests = workload([(100, 10)] * 3 + [(600, 40)])
    target = {"ttft_p95": 0.5, "tpot_p95": 0.05}
    small, large = Priced(machine("small"), 1.0), Priced(machine("large", 4.0), 2.0)
    one = sustained(LAB, histogram(requests, 1.0)[0], target, rates).rate
    mix = cheapest_mix(
        LAB,
        [small, large],
        requests,
        4 * one,
        target,
        rates=rates,
        one_thread_flops_per_s=5e10,
        slices=4,
    )
    assert mix.machines == ("small", "large")
    assert mix.per_hour == pytest.approx(mix.counts[0] * 1.0 + mix.counts[1] * 2.0)
    assert mix.counts[1] > 0  # four times as fast for twice the price
    alone = [price for price in mix.alone if price is not None]
    assert mix.per_hour <= min(alone)
    for shares in zip(*mix.shares, strict=True):
        assert sum(shares) == pytest.approx(1.0)
    text = "\n".join(mix.lines())
    assert "cheapest: " in text
    assert "large alone: " in text


def test_a_target_that_nobody_meets_says_what_is_missed(rates: Rates) -> None:
    machines = [Priced(machine("slow"), 1.0), Priced(machine("fast", 2.0), 3.0)]
    with pytest.raises(ConfigError, match=r"the nearest is 'fast': ttft_p95 .* instead of 1e-06 s"):
        cheapest_mix(
            LAB,
            machines,
            workload([(100, 5)]),
            1.0,
            {"ttft_p95": 1e-6},
            rates=rates,
            one_thread_flops_per_s=5e10,
        )
