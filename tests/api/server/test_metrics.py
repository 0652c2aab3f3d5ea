"""`/metrics`: vLLM's names under our prefix, the ledger, and no destructive read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ockham.api.server.metrics import Metrics
from ockham.cache.store.stats import TierStats
from ockham.engine.messages import Ready, Stats
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer, wait_for

NAMES = [
    "ockham_num_requests_running",
    "ockham_num_requests_waiting",
    "ockham_kv_cache_usage_perc",
    "ockham_num_preemptions_total",
    "ockham_prompt_tokens_total",
    "ockham_generation_tokens_total",
    "ockham_time_to_first_token_seconds_count",
    "ockham_inter_token_latency_seconds_count",
    "ockham_request_time_per_output_token_seconds_count",
    "ockham_e2e_request_latency_seconds_count",
    "ockham_request_queue_time_seconds_count",
    "ockham_request_prefill_time_seconds_count",
    "ockham_request_decode_time_seconds_count",
    "ockham_request_prompt_tokens_count",
    "ockham_request_generation_tokens_count",
    "ockham_request_success_total",
    "ockham_flops_total",
    "ockham_weight_bytes_total",
    "ockham_state_read_bytes_total",
    "ockham_state_written_bytes_total",
    "ockham_spec_decode_num_drafts_total",
    "ockham_spec_decode_num_draft_tokens_total",
    "ockham_spec_decode_num_accepted_tokens_total",
    "ockham_spec_decode_bytes",
    "process_resident_memory_bytes",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_there_under_its_name(server, name):
    assert server.metric(name) >= 0


def test_every_metric_of_ours_names_the_model(server):
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("ockham_"):
                assert sample.labels["model_name"] == "tiny", sample


def test_a_request_is_counted_once_in_each_place(server):
    server.wait_idle()
    names = {
        "ockham_prompt_tokens_total": 3,
        "ockham_generation_tokens_total": 8,
        "ockham_time_to_first_token_seconds_count": 1,
        "ockham_inter_token_latency_seconds_count": 7,
        "ockham_e2e_request_latency_seconds_count": 1,
    }
    before = {name: server.metric(name) for name in names}
    length = server.metric("ockham_request_success_total", finished_reason="length")
    server.complete(prompt=[5, 6, 7], max_tokens=8, ignore_eos=True)
    gained = {name: before[name] + count for name, count in names.items()}
    wait_for(lambda: {name: server.metric(name) for name in names} == gained, 5)
    assert server.metric("ockham_request_success_total", finished_reason="length") == length + 1


def test_the_ledger_of_a_request_is_what_the_counters_gain(server):
    server.wait_idle()
    before = server.metric("ockham_flops_total")
    bill = server.complete(prompt=[5, 6, 7])["usage"]["ockham"]
    wait_for(lambda: server.metric("ockham_flops_total") == before + bill["flops"], 5)


def test_what_a_technique_saved_is_counted_under_its_name(server):
    server.complete(prompt=[5, 6, 7], n=3, temperature=1.0)
    wait_for(lambda: "ockham_saved_tokens_total" in server.get("/metrics").text, 5)
    assert server.metric("ockham_saved_tokens_total", technique="fork") >= 6


def test_accepted_drafts_are_counted_by_position(tiny: Path, tmp_path: Path) -> None:
    # A tiny model repeats itself, and what it repeats is copied; whether it pays is not asked.
    always = json.dumps({"method": "ngram", "adaptive": False})
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, "--speculative-config", always) as server:
        asked = {"max_tokens": 60, "ignore_eos": True, "return_token_ids": True}
        answer = server.complete(prompt=[5, 6, 7] * 9, **asked)
        server.wait_idle()
        found = {
            name: server.metric(f"ockham_spec_decode_num_{name}_total")
            for name in ("drafts", "draft_tokens", "accepted_tokens")
        }
        text = server.get("/metrics").text
    assert 0 < found["drafts"] <= found["draft_tokens"]
    by_position = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ockham_spec_decode_num_accepted_tokens_per_pos_total"
    ]
    assert sum(by_position) == found["accepted_tokens"]
    assert sum(answer["choices"][0]["drafted"]) == found["accepted_tokens"]


def test_reading_changes_nothing(server):
    server.wait_idle()
    first, second = (_ours(server.get("/metrics").text) for _ in range(2))
    assert first == second


def test_requests_are_counted_by_route_and_never_by_what_the_caller_made_up(server):
    server.get("/made/up/by/the/caller")
    text = server.get("/metrics").text
    assert "made/up" not in text
    assert server.metric("ockham_http_requests_total", route="other", status="404") >= 1


def _ours(text: str) -> list[str]:
    return [
        line
        for line in text.splitlines()
        if line.startswith("ockham_") and "http_requests" not in line
    ]


def test_the_names_are_those_of_the_synchronous_engine(server, tiny):
    from ockham import LLM

    text = server.get("/metrics").text
    for name in LLM(str(tiny), kv_cache_memory_bytes=4 << 20).get_metrics():
        assert f"\n{name}{{" in text, name


def test_what_the_tiers_did_is_counted_on_through_a_restart() -> None:
    metrics = Metrics("m")
    metrics.stats(Stats(tiers=TierStats(bytes_written=100, disk_bytes=4096, skipped=2)))
    metrics.died()
    metrics.started(
        Ready(
            model="m",
            max_model_len=1,
            context_limit="",
            vocab_size=1,
            memory_plan={},
            numerics_id="",
            load_s=0.0,
        )
    )
    metrics.stats(Stats(tiers=TierStats(bytes_written=30, disk_bytes=8192, fetched=5)))
    text = generate_latest(metrics.registry).decode()
    label = '{model_name="m"}'
    for name, value in (
        ("kv_store_written_bytes_total", 130),
        ("kv_store_bytes", 8192),
        ("kv_store_skipped_total", 2),
        ("kv_fetched_pages_total", 5),
    ):
        assert f"ockham_{name}{label} {float(value)}" in text
