"""The benchmark of long prompts: its prompts, what is compared, its page."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.long.configurations import KINDS, configurations, trishape_share
from benchmarks.long.report import report
from benchmarks.long.workloads import WORKLOADS, Workload, prompt
from ockham.core.sampling_params import SamplingParams

SMOLLM2, RANDOM = WORKLOADS[0], WORKLOADS[2]
SESSION = {
    "kind": "session",
    "date": "2026-11-29 13:05",
    "commit": "abc1234",
    "processor": "AMD EPYC",
    "cores": 2,
    "threads": 2,
    "kernel": "6.18",
    "python": "3.11.7",
    "isa": "avx512",
}


def encode(text: str) -> list[int]:
    """A tokenizer's ids: one for each four letters of a word, one for each newline."""
    ids = [sum(word.encode()) for word in text.split() for _ in range(0, len(word), 4)]
    return ids + [0] * text.count("\n")


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.name)
def test_prompts_fit_their_length_and_are_new_in_every_round(workload: Workload) -> None:
    found = [prompt(workload, round_, encode) for round_ in range(3)]
    for each in found:
        assert 0.8 * workload.tokens < len(each.tokens) <= workload.tokens
        assert (each.question is not None) == workload.asks
    assert found[0].tokens == prompt(workload, 0, encode).tokens
    assert len({tuple(each.tokens) for each in found}) == 3


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.name)
def test_each_kind_has_both_engines_and_ockham_takes_what_it_is_asked(workload: Workload) -> None:
    for kind in KINDS:
        group = [each for each in configurations(workload) if each.kind == kind]
        assert {each.is_ockham for each in group} == {True, False}
    for each in configurations(workload):
        if each.is_ockham:
            asks = each.settings.get("asks", {})
            taken = SamplingParams(**asks).asks or {}
            assert {key.split("/")[1] for key in taken} == set(asks)


def test_trishape_reads_what_its_rule_says() -> None:
    assert trishape_share(2048, 2048) == 1.0  # nothing is farther away than the latest tokens
    # The fifth and last step of 2,500 tokens would leave nothing out, and none does.
    assert trishape_share(2500, 2048) == 1.0
    whole = 8000 * 8001 / 2
    counted = sum(min(begin, 2048) + row + 1 for begin in range(0, 7680, 512) for row in range(512))
    counted += sum(7680 + row + 1 for row in range(320))
    assert trishape_share(8000, 2048) == pytest.approx(counted / whole)


def run(workload: Workload, name: str, round_: int, first_s: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "run",
        "round": round_,
        "workload": workload.name,
        "configuration": name,
        "prompt_tokens": workload.tokens,
        "wall": {"first_s": first_s, "token_s": first_s / 1000, "whole_s": 2 * first_s},
        "processor": {"first_s": 7.0, "token_s": 0.007, "whole_s": 14.0},
        "tokens": [1, 2, 3, 4],
        "told": {"ledger": {"saved": {}}},
        "others_share": 0.01,
        **more,
    }


def test_the_page_compares_engines_in_the_same_round() -> None:
    records: list[dict[str, Any]] = [SESSION]
    for round_ in range(2):
        times = 1 + round_  # the machine drifts, and both engines see it
        records.append(run(RANDOM, "openvino", round_, 30.0 * times))
        records.append(run(RANDOM, "openvino-eviction", round_, 32.0 * times, tokens=[1, 2, 0, 4]))
        records.append(run(RANDOM, "ockham", round_, 20.0 * times))
        records.append(run(RANDOM, "ockham-snapkv", round_, 16.0 * times, tokens=[1, 0, 3, 4]))
    page = report(records)
    assert "| OpenVINO GenAI | `use_cache_eviction`, 2,048 tokens | 100% |" in page
    cells = "| 48.00 (32.00 to 64.00) | 0.94 | 48.0 (32.0 to 64.0) | 0.94 | 96.0 | 0.94 | 2 |"
    assert cells in page
    two = "2.00 (2.00 to 2.00; 2)"
    assert f"first token {two}, a token {two}, all {two}." in page
    assert "first token 1.50 (1.50 to 1.50; 2)" in page
    assert "right" not in page.split("## How")[0].split("## 1.1B")[1]


def test_the_page_tells_answers_and_what_was_read() -> None:
    name = "ockham-xattention"
    whole = 4 * SMOLLM2.query_width * SMOLLM2.tokens * (SMOLLM2.tokens + 1) / 2
    told = {"ledger": {"saved": {"xattention": {"flops": int(0.75 * whole)}}}}
    records: list[dict[str, Any]] = [SESSION]
    for round_ in range(2):
        records.append(run(SMOLLM2, "ockham", round_, 8.0, score=1.0))
        records.append(run(SMOLLM2, name, round_, 4.0, score=float(round_), told=told))
    records.append(
        {"kind": "failure", "configuration": "openvino", "workload": "x", "reason": "it hangs"}
    )
    page = report(records)
    assert "threshold 0.9, stride 16) | 25% | 4.00 (4.00 to 4.00) | 2.00 |" in page
    assert "| 1 of 2 |" in page
    assert "| 2 of 2 |" in page
    assert "openvino on x is missing: it hangs" in page


def test_beside_others_the_processors_seconds_are_told() -> None:
    records: list[dict[str, Any]] = [SESSION, run(RANDOM, "ockham", 0, 20.0)]
    assert "seconds and milliseconds are the processor's" not in report(records)
    records.append(run(RANDOM, "ockham", 1, 90.0, others_share=0.4))
    page = report(records)
    assert "seconds and milliseconds are the processor's" in page
    assert "| 7.00 (7.00 to 7.00) | 1 | 7.0 (7.0 to 7.0) | 1 | 14.0 | 1 |" in page


def test_a_page_of_nothing_says_what_to_run() -> None:
    with pytest.raises(ValueError, match="there are no results"):
        report([SESSION])
