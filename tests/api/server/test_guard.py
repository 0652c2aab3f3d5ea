"""The guard of a server: a technique goes bad with the traffic, is switched off, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ockham import LLM, SamplingParams
from tests.helpers.live import LiveServer, wait_for

ADMIN = "the administrator's own"
BY_ADMIN = {"Authorization": f"Bearer {ADMIN}"}
FLAGS = ("--kv-cache-memory-bytes", "16M", "--threads", "1", "--max-model-len", "512")
KEEP = "recent:window=64,sinks=4,block=16"
USE = {"technique": "keep/recent", "workload": "completion, short"}


@pytest.fixture(scope="module")
def live(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    guard = ("--keep", KEEP, "--guard", "1", "--guard-floor", "agreement>=0.97")
    env = {"OCKHAM_ADMIN_API_KEY": ADMIN}
    directory = tmp_path_factory.mktemp("guard")
    with LiveServer(tiny, directory, *FLAGS, *guard, **env) as server:
        server.metrics_headers = BY_ADMIN
        yield server


def guard_of(live: LiveServer) -> dict[str, Any]:
    answer = live.get("/v1/guard", headers=BY_ADMIN)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def complete(live: LiveServer, prompt: list[int], **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **fields}
    answer = live.post("/v1/completions", {**body, "return_token_ids": True})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0])


def prompt(number: int, tokens: int) -> list[int]:
    return [(number * 131 + 17 * place) % 4000 + 10 for place in range(tokens)]


def test_it_is_off_by_default_and_says_so(server: LiveServer) -> None:
    answer = server.get("/v1/guard")
    assert answer.status_code == 200
    assert answer.json()["on"] is False
    assert answer.json()["uses"] == []
    assert server.get("/v1/guard?model=another").status_code == 404


def test_its_figures_are_for_the_administrator(live: LiveServer) -> None:
    answer = live.get("/v1/guard")
    assert answer.status_code == 403
    assert "administrator's key" in answer.json()["error"]["message"]


def test_a_technique_that_goes_bad_with_the_traffic_is_switched_off(
    live: LiveServer, tiny: Path
) -> None:
    # Texts that fit into the window lose nothing.
    for number in range(12):
        assert "ockham" not in complete(live, prompt(number, 30), seed=number, temperature=0.8)
    wait_for(lambda: guard_of(live)["shadowed"] >= 10, 30)
    (use,) = guard_of(live)["uses"]
    assert (use["techniques"], use["workload"]) == (["keep/recent"], "completion, short")
    assert (use["state"], use["agreement"]) == ("on", 1.0)
    good = use["positions"]

    # Longer ones do. The exact model is heard of only while nobody asks.
    number = 100
    while guard_of(live)["uses"][0]["state"] == "on" and number < 160:
        number += 1
        complete(live, prompt(number, 200))
        wait_for(lambda: guard_of(live)["queued"] <= 1, 30)
    found = guard_of(live)
    (use,) = found["uses"]
    assert use["state"] == "off"
    assert use["positions"] - good <= 500
    assert use["agreement"] < 0.97
    assert found["rows"] <= found["traffic_rows"]
    (event,) = found["events"]
    assert (event["event"], event["reason"]) == ("off", "agreement is under 0.97")
    assert "Guard: keep/recent is switched off for the workload completion, short" in live.log

    # New requests get the exact model's answers, and are told.
    said = complete(live, prompt(200, 200))
    assert said["ockham"] == {"guard": {"left_out": ["keep/recent"]}}
    with LLM(str(tiny), threads=1, max_model_len=512, keep=KEEP, guard=0.0) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        [lossy] = llm.generate([prompt(200, 200)], params, use_tqdm=False)
    with LLM(str(tiny), threads=1, max_model_len=512) as llm:
        [exact] = llm.generate([prompt(200, 200)], params, use_tqdm=False)
    assert said["token_ids"] == exact.outputs[0].token_ids != lossy.outputs[0].token_ids

    # A stream says it with its end.
    with live.openai().completions.create(
        model=str(tiny), prompt=prompt(201, 200), max_tokens=4, stream=True
    ) as stream:
        chunks = [chunk for chunk in stream if chunk.choices]
    last = chunks[-1].choices[0].model_extra or {}
    assert last["ockham"] == {"guard": {"left_out": ["keep/recent"]}}

    assert live.metric("ockham_guard_off", **USE) == 1
    assert live.metric("ockham_guard_agreement", **USE) == pytest.approx(use["agreement"])
    assert live.metric("ockham_guard_shadowed_total") >= use["texts"]
    assert live.metric("ockham_guard_rows_total") == pytest.approx(found["rows"], rel=0.2)
