"""The kept step of a decoding says and books what the plain path does, step by step.

A hook that does nothing keeps an engine on the plain path, which is the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.ledger import Ledger
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta
from tests.helpers import serving
from tests.helpers.tiny import tiny_llama, tiny_mistral

BYTES_PER_CELL = 2 * 2 * 2 * 8 * 4
ask = partial(serving.ask, max_tokens=40, seed=7)
TIMES = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0}


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory) if request.param == "full" else tiny_mistral(directory)


@pytest.fixture
def pair(checkpoint) -> Callable[..., tuple[Engine, Engine]]:
    """Makes two engines with the same settings; the second keeps to the plain path."""

    def make(**settings) -> tuple[Engine, Engine]:
        own = {"max_model_len": 128, "block_size": 4, "kv_cache_memory_bytes": 1 << 20}
        config = EngineConfig(
            model=str(checkpoint),
            skip_tokenizer_init=True,
            speculative_config="none",
            **{**own, **settings},
        )
        kept, plain = Engine(config), Engine(config)
        plain.attach(next(iter(plain.model.program.breakpoints)), lambda run: None)
        return kept, plain

    return make


def timeless(ledger: Ledger | None) -> Ledger | None:
    return None if ledger is None else msgspec.structs.replace(ledger, **TIMES)


def step_both(kept: Engine, plain: Engine) -> list[Delta]:
    """One step of each, compared in what they say, what they cost, and the state they hold."""
    deltas, expected = kept.step(), plain.step()
    for delta in (*deltas, *expected):
        delta.ledger = timeless(delta.ledger)
    assert deltas == expected
    assert timeless(kept.total) == timeless(plain.total)
    assert kept.stats().steps == plain.stats().steps
    assert kept.stats().pages_used == plain.stats().pages_used
    kept.check_integrity()
    assert plain.runner.decoding is None
    return deltas


def prompts(count: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 97, rng.integers(1, 30)).tolist() for _ in range(count)]


def drain(kept: Engine, plain: Engine) -> int:
    """Steps both to the end; how many of the steps were of a kept decoding."""
    steps = 0
    while kept.has_work:
        step_both(kept, plain)
        steps += kept.runner.decoding is not None
    assert not plain.has_work
    return steps


def test_greedy_and_sampled_sequences_go_on_as_on_the_plain_path(pair):
    kept, plain = pair()
    for i, tokens in enumerate(prompts(6, seed=1)):
        for engine in (kept, plain):
            engine.add(ask(str(i), tokens, temperature=0.9 * (i % 2), max_tokens=30 + 3 * i))
    assert drain(kept, plain) > 30


def test_arrivals_forks_and_aborts_interrupt_it(pair):
    kept, plain = pair(max_num_batched_tokens=16)
    for i, tokens in enumerate(prompts(5, seed=2)):
        for engine in (kept, plain):
            engine.add(ask(str(i), tokens, n=1 + i % 2, temperature=0.7))
        for _ in range(9):
            step_both(kept, plain)
    assert [d.finish_reason for d in kept.abort("3")] == [d.finish_reason for d in plain.abort("3")]
    assert drain(kept, plain) > 10


def test_min_tokens_penalties_and_logprobs_wait_for_the_plain_path(pair):
    kept, plain = pair()
    stop = list(range(2, 60))
    for engine in (kept, plain):
        engine.add(ask("a", [5, 6, 7], min_tokens=12, stop_token_ids=stop, temperature=1.0))
        engine.add(ask("b", [8, 9], repetition_penalty=1.3, max_tokens=10))
        engine.add(ask("c", [10] * 20, logprobs=2, max_tokens=8))
        engine.add(ask("d", [11] * 9, prompt_logprobs=1, max_tokens=60))
    assert drain(kept, plain) > 30


def test_it_ends_where_pages_run_out(pair):
    kept, plain = pair(
        max_model_len=80, max_num_batched_tokens=8, kv_cache_memory_bytes=80 * BYTES_PER_CELL
    )
    for i, tokens in enumerate(prompts(6, seed=3)):
        for engine in (kept, plain):
            engine.add(ask(str(i), tokens, max_tokens=30))
    drain(kept, plain)
    assert kept.scheduler.preemptions == plain.scheduler.preemptions > 0


def test_it_goes_on_while_requests_wait_for_a_seat(pair):
    kept, plain = pair(max_num_seqs=2)
    for i, tokens in enumerate(prompts(4, seed=4)):
        for engine in (kept, plain):
            engine.add(ask(str(i), tokens))
    assert drain(kept, plain) > 60


def test_a_bill_asked_for_between_two_steps_is_complete(pair):
    kept, plain = pair()
    for engine in (kept, plain):
        engine.add(ask("a", [5, 6, 7]))
        engine.add(ask("b", [5, 6]))
    for _ in range(10):
        for engine in (kept, plain):
            engine.step()
    assert kept.runner.decoding is not None
    assert kept.runner.decoding.unbilled > 1
    assert timeless(kept.total) == timeless(plain.total)
    bills = [[timeless(s.ledger) for s in engine.scheduler.running] for engine in (kept, plain)]
    assert bills[0] == bills[1]
