"""A request starts within a few steps, whatever others have queued or are reading."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from ockham.core.sampling_params import SamplingParams
from ockham.engine.crowd import MOST_LOOKUPS
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers import serving
from tests.helpers.tiny import tiny_llama

VOCABULARY = 61
FEW = 4
"""Steps."""
POLICIES = ("lpm", "fcfs")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fairness")
    return tiny_llama(directory, vocab_size=VOCABULARY, max_position_embeddings=4096)


make_engine = partial(
    serving.make_engine,
    max_model_len=2048,
    max_num_batched_tokens=64,
    max_num_seqs=8,
    kv_cache_memory_bytes=32 << 20,
    speculative_config="none",
)


def ask(name: str, prompt: int, most: int, tenant: str = "", n: int = 1, **more: Any) -> Request:
    tokens = np.random.default_rng(crc32(name.encode()))
    return Request(
        request_id=name,
        prompt_token_ids=tokens.integers(0, VOCABULARY, prompt).tolist(),
        params=SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True, n=n),
        detokenize=False,
        tenant=tenant,
        **more,
    )


def steps_until(engine: Engine, name: str, most: int = 1000) -> int:
    """Steps until a request is finished."""
    for count in range(1, most + 1):
        deltas = engine.step()
        engine.check_integrity()
        if any(delta.request_id == name and delta.finished for delta in deltas):
            return count
    raise AssertionError(f"{name} is not finished after {most} steps")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("named_by", ["tenant", "cache_salt"])
def test_a_request_behind_anothers_queue_is_answered_at_once(
    checkpoint: Path, policy: str, named_by: str
) -> None:
    engine = make_engine(checkpoint, scheduling_policy=policy)
    for number in range(100):
        engine.add(ask(f"flood {number}", 10, 100, **{named_by: "flood"}))
    for _ in range(20):  # until they do nothing but decode, and hold every seat
        engine.step()
    for number in range(3):
        engine.add(ask(f"other {number}", 5, 1, **{named_by: "other"}))
        assert steps_until(engine, f"other {number}") <= FEW
    assert engine.scheduler.preemptions <= 3
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("long_prompts", [0, 1, 2, 3, 4, 7])
def test_a_short_prompt_waits_for_no_long_one(
    checkpoint: Path, policy: str, long_prompts: int
) -> None:
    engine = make_engine(checkpoint, scheduling_policy=policy)
    for number in range(long_prompts):
        engine.add(ask(f"long {number}", 1500, 4))
    engine.add(ask("short", 8, 1))
    assert steps_until(engine, "short") <= FEW


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_of_which_little_is_not_held_is_a_short_one(checkpoint: Path, policy: str) -> None:
    engine = make_engine(checkpoint, scheduling_policy=policy)
    engine.add(ask("document", 1000, 1))
    held = engine.scheduler.waiting.last.tokens
    steps_until(engine, "document")
    for number in range(4):
        engine.add(ask(f"long {number}", 1500, 4))
    again = ask("again", 1, 1)
    again.prompt_token_ids = [*held[:1000], 1, 2, 3]
    engine.add(again)
    assert steps_until(engine, "again") <= FEW


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_prompt_is_not_passed_for_ever(checkpoint: Path, policy: str) -> None:
    """Short ones of the same tenant keep coming, as many as there is room for."""
    engine = make_engine(checkpoint, scheduling_policy=policy, max_num_seqs=32)
    for number in range(3):
        engine.add(ask(f"long {number}", 1000, 1))
    finished: set[str] = set()
    for step in range(600):
        for number in range(3):
            engine.add(ask(f"short {step} {number}", 24, 1))
        finished |= {d.request_id for d in engine.step() if d.finished}
        if finished >= {"long 0", "long 1", "long 2"}:
            return
    raise AssertionError(f"only {sorted(n for n in finished if 'long' in n)} were finished")


@pytest.mark.parametrize("policy", POLICIES)
def test_two_tenants_get_the_same(checkpoint: Path, policy: str) -> None:
    engine = make_engine(checkpoint, scheduling_policy=policy)
    for number in range(200):
        engine.add(ask(f"flood {number}", 30, 20, "flood"))
    for number in range(20):
        engine.add(ask(f"other {number}", 30, 20, "other"))
    order = []
    while engine.has_work:
        order += [d.request_id.split()[0] for d in engine.step() if d.finished]
    last = max(place for place, name in enumerate(order) if name == "other")
    assert last < 60, "20 of the other's took the time of 40 of both, and of what was running"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("reuse", ["prefix", "none"])
def test_giving_way_in_a_full_pool_loses_nobody(checkpoint: Path, policy: str, reuse: str) -> None:
    plain = make_engine(checkpoint, scheduling_policy=policy)
    page_bytes = sum(group.page_bytes for group in plain.state.groups)
    engine = make_engine(
        checkpoint,
        scheduling_policy=policy,
        reuse=reuse,
        max_model_len=256,
        kv_cache_memory_bytes=40 * page_bytes,
    )
    rng = np.random.default_rng(3)
    requests = [
        ask(f"{tenant} {n}", int(rng.integers(1, 120)), int(rng.integers(1, 60)), tenant)
        for tenant in ("a", "b", "c")
        for n in range(15)
    ]
    alone: dict[str, list[int]] = {}
    for request in requests:
        plain.add(request)
        alone[request.request_id] = []
        while plain.has_work:
            for delta in plain.step():
                alone[request.request_id] += delta.token_ids
    rng.shuffle(requests)  # type: ignore[arg-type]
    found: dict[str, list[int]] = {name: [] for name in alone}
    while engine.has_work or requests:
        for _ in range(min(len(requests), int(rng.integers(0, 3)))):
            engine.add(requests.pop())
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
        engine.check_integrity()
    assert found == alone
    assert engine.scheduler.preemptions <= 200


@pytest.mark.parametrize("policy", POLICIES)
def test_all_choices_of_a_request_find_seats(checkpoint: Path, policy: str) -> None:
    engine = make_engine(checkpoint, scheduling_policy=policy)
    for number in range(30):
        engine.add(ask(f"flood {number}", 10, 60, "flood"))
    for _ in range(10):
        engine.step()
    engine.add(ask("choices", 5, 3, "other", n=3))
    assert steps_until(engine, "choices") <= 3 + FEW
    while engine.has_work:
        engine.step()
    assert not engine.scheduler.policy.pressing


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_prompt_that_is_looked_up_may_be_the_one_that_begins(
    checkpoint: Path, policy: str
) -> None:
    """A policy asks several times whether the same one has room, and gets the same answer."""
    engine = make_engine(checkpoint, scheduling_policy=policy)
    engine.take(ask("held", 200, 1))
    steps_until(engine, "held")
    for number in range(3):
        engine.take(ask(f"under way {number}", 400, 1))
    engine.step()
    for number in range(MOST_LOOKUPS - 1):
        engine.take(ask(f"long {number}", 400, 1))
    again = ask("held", 200, 1)
    again.request_id = "again"
    engine.take(again)
    steps_until(engine, "again")
    assert all(f"long {number}" in engine.groups for number in range(MOST_LOOKUPS - 1))
    while engine.has_work:
        engine.step()
    engine.check_integrity()
