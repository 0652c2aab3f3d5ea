"""Ratios, workloads and the page of results of the peers' benchmark."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.peers.environments import BEGUN_FILE, SetupFailed, _remove
from benchmarks.peers.figures import BY_BANDWIDTH, Figures, least_seconds
from benchmarks.peers.peers import CONFIGURATIONS
from benchmarks.peers.ratios import paired_ratio
from benchmarks.peers.report import report
from benchmarks.peers.results import Results, beside_bytes_per_s
from benchmarks.peers.rounds import rotated
from benchmarks.peers.workloads import WORKLOADS, prompts, trace
from tests.helpers import peers
from tests.helpers.peers import LIMITS
from tests.helpers.strangers import Strangers

OURS = next(each for each in CONFIGURATIONS if each.name == "ockham-int8")
THEIRS = next(each for each in CONFIGURATIONS if each.name == "llamacpp-Q8_0")
WORKLOAD = {each.name: each for each in WORKLOADS}


def test_a_drift_that_both_see_leaves_the_ratio_and_its_interval_alone():
    ratio = paired_ratio([(2.0 * drift, 1.0 * drift) for drift in (1.0, 0.5, 3.0)])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_is_students_of_the_logarithms():
    pairs = [(1.0, 1.0), (1.2, 1.0), (1.5, 1.0), (0.9, 1.0)]
    logs = np.log([a / b for a, b in pairs])
    low, high = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    ratio = paired_ratio(pairs)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    numbers = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        pairs = [(1.3 * math.exp(error), 1.0) for error in numbers.normal(0, 0.1, 5)]
        ratio = paired_ratio(pairs)
        covered += ratio.low <= 1.3 <= ratio.high
    assert 0.92 < covered / 400 < 0.98


def test_a_single_pair_leaves_everything_open():
    ratio = paired_ratio([(3.0, 2.0)])
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(1.5), 0.0, math.inf)


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)], [(-1.0, 1.0)]])
def test_ratios_of_nothing_or_of_nonsense_are_refused(pairs):
    with pytest.raises(ValueError):
        paired_ratio(pairs)


def test_a_trace_depends_on_its_seed_alone_and_keeps_its_bounds():
    mixed = WORKLOAD["mixed"]
    arrivals = trace(mixed, "a")
    assert arrivals == trace(mixed, "a") != trace(mixed, "b")
    assert [moment for moment, _, _ in arrivals] == sorted(moment for moment, _, _ in arrivals)
    assert len(arrivals) == mixed.requests
    for seed in range(50):
        for _, prompt, new_tokens in trace(mixed, str(seed)):
            assert 16 <= len(prompt) <= 1024
            assert 16 <= new_tokens <= 256


def test_arrivals_come_at_the_rate_that_is_stated():
    mixed = WORKLOAD["mixed"]
    last = [trace(mixed, str(seed))[-1][0] for seed in range(300)]
    assert statistics.fmean(last) == pytest.approx(
        (mixed.requests - 1) / mixed.requests_per_s, rel=0.05
    )


def test_prompts_are_ordinary_tokens():
    (prompt,) = prompts(1, 2048, "seed")
    assert len(prompt) == 2048
    assert min(prompt) >= 3
    assert max(prompt) < 32000


def test_the_least_time_is_that_of_the_bytes_or_of_the_operations():
    decode, prefill = WORKLOAD["decode-1"], WORKLOAD["prefill-2048"]
    assert least_seconds(decode, OURS, 10**9, LIMITS) == pytest.approx(127 / 30, rel=0.01)
    assert least_seconds(prefill, OURS, 10**9, LIMITS) == pytest.approx(
        2 * 2048 * 0.969e9 / 800e9, rel=0.01
    )


def test_every_engine_begins_once_before_any_does_so_again():
    group = list(CONFIGURATIONS[:4])
    assert {rotated(group, by)[0].name for by in range(4)} == {each.name for each in group}
    assert sorted(each.name for each in rotated(group, 7)) == sorted(each.name for each in group)


def run(round_, configuration, seconds, workload="decode-1", **more):
    return {
        "kind": "run",
        "round": round_,
        "workload": workload,
        "configuration": configuration.name,
        "tokens": 127,
        "seconds": seconds,
        "limits": LIMITS,
        "others_share": 0.0,
        **more,
    }


SESSION = peers.SESSION | {"token_bytes": {OURS.name: 10**9, THEIRS.name: 10**9}}


def test_a_peer_that_is_slower_in_every_round_is_reported_behind():
    records = [SESSION]
    for round_, drift in enumerate((1.0, 1.5, 0.8)):
        records += [run(round_, OURS, 4.0 * drift), run(round_, THEIRS, 8.0 * drift)]
    page = report(records)
    assert "2.00 (2.00 to 2.00; 3)" in page
    assert "ahead in 1 of 1 comparisons" in page
    assert "A Processor" in page
    swapped = [
        each | {"seconds": 32 / each["seconds"]} if "seconds" in each else each for each in records
    ]
    assert "behind in 1: int8 of llama.cpp Q8_0 (0.50)" in report(swapped)


def test_less_memory_and_an_earlier_first_token_are_better():
    records = [SESSION]
    for each, amount in ((OURS, 1.0), (THEIRS, 3.0)):
        first = {"kind": "run", "round": 0, "workload": "first-token", "seconds": amount}
        records.append(first | {"configuration": each.name, "limits": LIMITS, "others_share": 0.0})
        records.append(
            {
                "kind": "memory",
                "round": 0,
                "configuration": each.name,
                "peak_bytes": amount * 1e9,
                "workloads": ["decode-1"],
            }
        )
    figures = Figures(records)
    for workload in ("first-token", "memory"):
        assert figures.ratio(workload, OURS, THEIRS).value == pytest.approx(3.0)


def test_what_was_left_out_is_told():
    failure = {"kind": "failure", "configuration": THEIRS.name, "reason": "it fell over"}
    assert "llamacpp-Q8_0: it fell over" in report([SESSION, run(0, OURS, 4.0), failure])


def test_a_disturbed_run_does_not_count():
    records = [SESSION, run(0, OURS, 4.0), run(0, THEIRS, 8.0)]
    records += [run(1, OURS, 4.0, others_share=0.5), run(1, THEIRS, 4.0)]
    figures = Figures(records)
    assert figures.disturbed == 1
    assert figures.ratio("decode-1", OURS, THEIRS).value == pytest.approx(2.0)


def test_only_what_was_measured_in_one_cell_is_paired():
    records = [SESSION, run(0, OURS, 4.0, cell=1.5), run(0, THEIRS, 8.0, cell=1.5)]
    records += [run(0, OURS, 4.0, cell=2.5), run(1, THEIRS, 2.0, cell=3.5)]
    assert Figures(records).ratio("decode-1", OURS, THEIRS).value == pytest.approx(2.0)


def test_a_single_pair_decides_nothing():
    page = report([SESSION, run(0, OURS, 4.0), run(0, THEIRS, 8.0)])
    assert "decides nothing: how many times as good" in page
    assert "comparisons: decode, batch 1 2.00 to 2.00 (1)" in page
    assert "ahead in" not in page


def test_the_page_begins_with_tokens_per_second():
    page = report([SESSION, run(0, OURS, 4.0), run(0, THEIRS, 8.0)])
    top = page.partition("| limit")[0]
    rates = [line for line in top.splitlines() if line.startswith("| 8 |")]
    assert [line.split(" | ")[1] for line in rates] == ["Ockham int8", "llama.cpp Q8_0"]
    assert all(f"| {line.split(' | ')[2]} " in page.partition("## Decode")[2] for line in rates)


def test_nothing_measured_is_no_page():
    with pytest.raises(ValueError, match="no results"):
        report([SESSION])


def test_a_file_of_results_goes_on_where_it_stopped(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add(**run(0, OURS, 4.0))
    assert not results.has(0, "decode-1", [OURS, THEIRS])
    results.add(**run(0, THEIRS, 4.0))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"kind": "run", "cut sh')
    again = Results(tmp_path / "results.jsonl")
    assert again.records == results.records
    assert again.has(0, "decode-1", [OURS, THEIRS])
    assert not again.has(1, "decode-1", [OURS, THEIRS])
    again.add(**run(1, OURS, 4.0))
    assert Results(tmp_path / "results.jsonl").records == again.records


def test_results_cut_no_file_that_holds_none(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"a thesis without a line's end")
    with pytest.raises(ValueError, match="is no file of results"):
        Results(path).add(**run(0, OURS, 4.0))
    assert path.read_bytes() == b"a thesis without a line's end"


def test_only_what_was_begun_here_is_removed(tmp_path):
    strangers = Strangers(tmp_path / "outside")
    strangers.beside(tmp_path / "environments" / "vllm")
    (tmp_path / "link").symlink_to(strangers.folder)
    before = strangers.digest()
    for path in (tmp_path / "environments" / "vllm", tmp_path / "link"):
        with pytest.raises(SetupFailed, match="was not made here"):
            _remove(path)
    assert strangers.digest() == before
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / BEGUN_FILE).touch()
    (begun / "link").symlink_to(strangers.folder)
    _remove(begun)
    assert not begun.exists()
    assert strangers.digest() == before


def test_a_cell_that_was_disturbed_is_missing(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add(**run(0, OURS, 4.0))
    results.add(**run(0, THEIRS, 4.0, others_share=0.5))
    assert not results.has(0, "decode-1", [OURS, THEIRS])
    results.add(**run(0, THEIRS, 4.0))
    assert results.has(0, "decode-1", [OURS, THEIRS])


def test_a_cell_is_expected_to_take_what_its_kind_took_or_the_longest():
    results = Results(Path("nowhere"))
    assert results.expected_s("decode-1", 8) == 0.0
    for workload, seconds in (("decode-1", 20.0), ("decode-1", 30.0), ("mixed", 90.0)):
        results.records.append(
            {"kind": "cell", "round": 0, "workload": workload, "bits": 8, "seconds": seconds}
        )
    assert results.expected_s("decode-1", 8) == 30.0
    assert results.expected_s("decode-1", 4) == 30.0
    assert results.expected_s("decode-8", 4) == 90.0


def test_the_share_of_the_bandwidth_is_that_of_the_pauses_of_the_run():
    decode = run(0, OURS, 127 / 30, read_rates=[20e9, 60e9])
    assert beside_bytes_per_s(decode) == pytest.approx(40e9)
    assert beside_bytes_per_s(run(0, OURS, 4.0)) == LIMITS["read_bytes_per_s"]
    share = Figures([SESSION, decode]).limit_share("decode-1", OURS)
    assert share == pytest.approx(0.75, rel=0.01)


def test_a_drift_between_the_runs_of_a_pair_is_taken_out_of_decoding():
    records = [SESSION]
    for cell, drift in enumerate((1.0, 2.0, 0.7)):
        records.append(run(0, OURS, 4.0, cell=cell, read_rates=[30e9]))
        records.append(run(0, THEIRS, 8.0 / drift, cell=cell, read_rates=[30e9 * drift]))
    ratio = Figures(records).ratio(BY_BANDWIDTH, OURS, THEIRS)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_page_says_which_rounds_measured_which_commit():
    records = [SESSION | {"commit": "abc"}, run(0, OURS, 4.0), run(1, OURS, 4.0)]
    records += [SESSION | {"commit": "def"}, run(2, OURS, 4.0)]
    assert "abc in rounds 1, 2; def in round 3." in report(records)


def test_a_configuration_that_failed_is_not_waited_for(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add(**run(0, OURS, 4.0))
    results.add(kind="failure", round=0, workload="decode-1", configuration=THEIRS.name, reason="x")
    assert results.has(0, "decode-1", [OURS, THEIRS])
