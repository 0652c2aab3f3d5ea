"""`recent`: the first few cells and the latest ones stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.registry import asks_by_name, make
from ockham.core.step import GroupRows, Step
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers.serving import ask, complete, drain, make_engine, tokens_of
from tests.helpers.steps import Part, Stepper
from tests.helpers.tiny import tiny_alternating, tiny_llama

WINDOW, SINKS, BLOCK = 20, 2, 16
RECENT = {"keep/recent": {"window": WINDOW, "sinks": SINKS, "block": BLOCK}}
LENGTHS = (3, 130, 41, 90, 22)


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory) if request.param == "full" else tiny_alternating(directory)


def prompt(number: int) -> list[int]:
    return np.random.default_rng(number).integers(2, 97, LENGTHS[number]).tolist()


def engine_of(checkpoint: Path, **settings: Any) -> Engine:
    return make_engine(checkpoint, **{"block_size": 4, "speculative_config": "none", **settings})


def requests(asks: dict[str, Any], name: str = "") -> list[Request]:
    return [
        ask(f"{name}{n}", prompt(n), asks=asks, seed=n, max_tokens=50, temperature=0.9)
        for n in range(len(LENGTHS))
    ]


def seen(place: int) -> list[int]:
    """The tokens that the row in a place sees, by the definition alone."""
    border = place // BLOCK * BLOCK
    if border <= SINKS + WINDOW:
        return list(range(place + 1))
    kept = [p for p in range(border) if p < SINKS or p >= border - WINDOW]
    return [*kept, *range(border, place + 1)]


def seeing(stepper: Stepper, token: int, place: int) -> Step:
    """The step of one row that sees exactly these tokens, all of whose state is held; in layers
    with a window, what it sees there."""
    step = stepper.build([Part(0, [token])])
    for group, layout in zip(step.groups, stepper.model.layouts, strict=True):
        if layout.window is None:
            cells = np.array(seen(place), np.int32)
            _see(group, cells)
    return step


def _see(group: GroupRows, cells: np.ndarray) -> None:
    group.context[:] = 0
    group.extra = cells
    group.extra_starts = np.array([0, len(cells)], np.int32)


def test_each_row_sees_exactly_those_keys(checkpoint: Path) -> None:
    """Bit for bit what rows give that see these keys of a state of which all is held."""
    engine = engine_of(checkpoint)
    tokens = prompt(1)
    logits: list[np.ndarray] = []
    engine.on_scored = lambda name, found: logits.append(found.copy())
    complete(engine, [ask("scored", tokens, asks=RECENT, max_tokens=0, prompt_logprobs=0)])
    stepper = Stepper(engine.model)
    expected = []
    for place, token in enumerate(tokens[:-1]):
        step = seeing(stepper, token, place)
        run = stepper.executor.begin(step)
        stepper.executor.run(run, 0, len(engine.model.program.ops))
        expected.append(stepper.executor.finish(run).logits)
        stepper._commit(Part(0, [token]))
    assert np.array_equal(np.concatenate(logits), np.concatenate(expected))


@pytest.mark.parametrize("budget", [5, 64, 256])
def test_no_batch_and_no_chunk_changes_a_token(checkpoint: Path, budget: int) -> None:
    both = [*requests(RECENT, "kept "), *requests({}, "whole ")]
    alone = engine_of(checkpoint, max_num_batched_tokens=3, max_num_seqs=1, reuse="none")
    expected: dict[Any, list[int]] = {}
    for request in both:
        expected |= complete(alone, [msgspec.structs.replace(request)])
    engine = engine_of(checkpoint, max_num_batched_tokens=budget)
    for request in both:
        engine.add(request)
    deltas, steps = [], 0
    while engine.has_work:
        deltas += engine.step()
        steps += 1
        running = engine.scheduler.running
        if steps % 11 == 0 and steps < 100 and running:
            engine.scheduler.preempt(running[steps % len(running)])
        engine.check_integrity()
    assert tokens_of(deltas) == expected
    assert any(expected[f"kept {n}", 0] != expected[f"whole {n}", 0] for n in range(len(LENGTHS)))


def test_state_before_the_first_drop_is_shared_and_no_other(checkpoint: Path) -> None:
    engine = engine_of(checkpoint)
    complete(engine, requests({}, "whole "))
    bills = []
    for name in ("first", "second"):
        before = engine.total.prompt_tokens_reused
        complete(engine, [ask(name, prompt(1), asks=RECENT)])
        bills.append(engine.total.prompt_tokens_reused - before)
    first_drop = -(-(SINKS + WINDOW + 1) // BLOCK) * BLOCK
    assert bills == [0, first_drop]


def test_the_ledger_books_what_attention_need_not_do(tmp_path: Path) -> None:
    engine = engine_of(tiny_llama(tmp_path), reuse="none")
    deltas = []
    engine.add(ask("kept", prompt(1), asks=RECENT, max_tokens=30))
    deltas += drain(engine)
    bill = deltas[-1].ledger
    assert isinstance(bill, Ledger)
    rows = LENGTHS[1] + 30 - 1
    keys = sum(place + 1 - len(seen(place)) for place in range(rows))
    assert bill.saved["recent"].flops == keys * engine.cost.attention_flops(1, 1)
    whole = sum(engine.cost.attention_flops(place + 1, 1) for place in range(rows))
    linear = rows * engine.cost.linear_flops + 30 * engine.cost.head_flops
    assert bill.flops == linear + whole - bill.saved["recent"].flops


def test_a_text_longer_than_the_pool_is_served(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    page_bytes = engine_of(checkpoint).state.groups[0].page_bytes
    setting = f"recent:window={WINDOW},sinks={SINKS},block={BLOCK}"
    engine = engine_of(
        checkpoint, keep=setting, kv_cache_memory_bytes=12 * page_bytes, max_model_len=500
    )
    engine.add(ask("long", prompt(0), max_tokens=490))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats().pages_used)
    assert most <= -(-(SINKS + WINDOW + BLOCK) // 4)
    with pytest.raises(InvalidRequest, match="the pool holds 48"):
        engine.add(ask("whole", prompt(0), asks={"keep/all": True}, max_tokens=100))


def test_a_request_asks_by_its_name() -> None:
    assert asks_by_name({"recent": {"window": 8}}) == {"keep/recent": {"window": 8}}


def test_wrong_values_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="window must be from 1"):
        make("keep", "recent:window=0")
    with pytest.raises(ConfigError, match="no option 'size'"):
        make("keep", "recent:size=3")
    engine = engine_of(tiny_llama(tmp_path))
    for wrong, words in [({"sinks": -1}, "sinks must be from 0"), ({"size": 1}, "takes no size")]:
        with pytest.raises(InvalidRequest, match=words):
            engine.add(ask("wrong", prompt(0), asks={"keep/recent": wrong}))
