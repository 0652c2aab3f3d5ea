"""What the engine promises whatever the schedule: the same tokens, every page back, a true bill."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from tests.helpers import serving
from tests.helpers.serving import ask, complete, drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory) if request.param == "full" else tiny_mistral(directory)


make_engine = partial(
    serving.make_engine,
    block_size=4,
    kv_cache_memory_bytes=1 << 20,
    speculative_config="none",
)
BYTES_PER_CELL = 2 * 2 * 2 * 8 * 4


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 97, rng.integers(1, longest)).tolist() for _ in range(count)]


@pytest.fixture(scope="module")
def alone(checkpoint):
    """Each prompt's greedy continuation, computed with nothing beside it."""
    engine = make_engine(checkpoint)
    result = {}
    for i, tokens in enumerate(prompts(9)):
        result |= complete(engine, [ask(str(i), tokens)])
    return result


@pytest.mark.parametrize("budget", [1, 7, 512])
def test_batching_and_chunking_change_no_token(checkpoint, alone, budget):
    engine = make_engine(checkpoint, max_num_batched_tokens=budget)
    assert complete(engine, [ask(str(i), t) for i, t in enumerate(prompts(9))]) == alone


def test_preemption_changes_no_token_and_is_billed_as_waste(checkpoint):
    # Short prompts that grow: all are admitted, and then there are too few pages for all.
    requests = [ask(str(i), t, max_tokens=40) for i, t in enumerate(prompts(12, longest=4))]
    expected = complete(make_engine(checkpoint), requests)
    engine = make_engine(checkpoint, max_model_len=60, kv_cache_memory_bytes=60 * BYTES_PER_CELL)
    assert complete(engine, requests) == expected
    assert engine.scheduler.preemptions > 0
    assert engine.total.wasted["preemption"].tokens > 0


def test_choices_of_one_request_share_the_prompt(checkpoint, alone):
    tokens = max(prompts(9), key=len)
    name = str(prompts(9).index(tokens))
    engine = make_engine(checkpoint, max_num_batched_tokens=16)
    out = complete(engine, [ask(name, tokens, n=3)])
    assert [out[name, i] for i in range(3)] == [alone[name, 0]] * 3
    assert engine.total.prompt_tokens_computed == len(tokens)
    assert engine.total.prompt_tokens == len(tokens)
    assert engine.total.prompt_tokens_reused == 0
    assert engine.total.saved["fork"].tokens == 2 * len(tokens)


def test_choices_differ_by_their_noise_and_not_by_their_batch(checkpoint):
    tokens = prompts(1, seed=5)[0]
    sampled = {"temperature": 1.0, "seed": 11, "n": 4}
    small = complete(
        make_engine(checkpoint, max_num_batched_tokens=3), [ask("a", tokens, **sampled)]
    )
    engine = make_engine(checkpoint)
    crowd = [ask(f"other{i}", t, temperature=0.8) for i, t in enumerate(prompts(5, seed=9))]
    large = complete(engine, [*crowd, ask("a", tokens, **sampled)])
    assert [small["a", i] for i in range(4)] == [large["a", i] for i in range(4)]
    assert len({tuple(small["a", i]) for i in range(4)}) == 4


def test_forked_choices_survive_preemption(checkpoint):
    tokens = prompts(1, seed=5)[0][:30]
    request = ask("a", tokens, n=8, temperature=1.0, seed=3, max_tokens=30)
    expected = complete(make_engine(checkpoint), [request])
    engine = make_engine(
        checkpoint,
        max_model_len=80,
        max_num_batched_tokens=8,
        kv_cache_memory_bytes=80 * BYTES_PER_CELL,
    )
    assert complete(engine, [request]) == expected
    assert engine.scheduler.preemptions > 0


def test_the_bills_of_all_requests_add_up_to_the_steps_totals(checkpoint):
    engine = make_engine(
        checkpoint, max_num_batched_tokens=24, kv_cache_memory_bytes=1 << 16, max_model_len=100
    )
    for i, tokens in enumerate(prompts(12, seed=3)):
        engine.add(ask(str(i), tokens, n=1 + i % 3, prompt_logprobs=1 if i % 4 == 0 else None))
    deltas = []
    for _ in range(5):
        deltas += engine.step()
    deltas += engine.abort("2") + engine.abort("11")
    deltas += drain(engine)
    bills = [d.ledger for d in deltas if d.ledger is not None]
    assert len(bills) == 12
    total = Ledger()
    for bill in bills:
        total.add(bill)
    for field in ("queue_s", "prefill_s", "decode_s"):
        assert getattr(total, field) == pytest.approx(getattr(engine.total, field))
        setattr(total, field, getattr(engine.total, field))
    assert total == engine.total
    assert total.flops > 0
    assert total.weight_bytes > 0
    assert total.saved["batching"].bytes > 0


def test_a_request_alone_saves_and_wastes_nothing(checkpoint):
    engine = make_engine(checkpoint)
    tokens = list(range(2, 22))
    engine.add(ask("a", tokens, max_tokens=5))
    bill = next(d.ledger for d in drain(engine) if d.ledger)
    assert (bill.prompt_tokens, bill.prompt_tokens_computed) == (20, 20)
    assert bill.prompt_tokens_reused == 0
    assert bill.generated_tokens == 5
    assert bill.rows == 20 + 4, "the last token is never fed back"
    assert bill.saved == bill.wasted == {}
    cost = engine.cost
    assert bill.flops == cost.row_flops(1, 24, 5)
    assert bill.weight_bytes == cost.weight_bytes(20, 1) + 4 * cost.weight_bytes(1, 1)


def test_a_long_prompt_does_not_stall_the_others(checkpoint):
    engine = make_engine(checkpoint, max_num_batched_tokens=8)
    engine.add(ask("running", [5, 6, 7], max_tokens=50))
    engine.step()
    engine.add(ask("long", list(range(2, 90)) * 2))
    engine.add(ask("short", [9, 8, 7]))
    first: dict[str, int] = {}
    for step in range(60):
        deltas = engine.step()
        assert any(d.request_id == "running" for d in deltas) or step >= 49
        for delta in deltas:
            first.setdefault(delta.request_id, step)
    assert first["short"] <= 2 < 10 < first["long"]


def test_decodes_beyond_the_budget_take_turns(checkpoint):
    engine = make_engine(checkpoint, max_num_batched_tokens=2)
    for i in range(5):
        engine.add(ask(str(i), [5 + i], max_tokens=40))
    produced: dict[str, int] = {}
    for _ in range(60):
        for delta in engine.step():
            produced[delta.request_id] = produced.get(delta.request_id, 0) + 1
    assert max(produced.values()) - min(produced.values()) <= 3


def test_an_abort_frees_the_state_at_once_and_touches_no_one_else(checkpoint, alone):
    engine = make_engine(checkpoint)
    for i, tokens in enumerate(prompts(9)):
        engine.add(ask(str(i), tokens, n=2 if i == 4 else 1))
    deltas = [d for _ in range(3) for d in engine.step()]
    ended = engine.abort("4")
    assert {d.finish_reason for d in ended} == {"abort"}
    assert ended[-1].finished
    assert engine.abort("4") == []
    out = tokens_of([*deltas, *drain(engine)])
    assert all(out[str(i), 0] == alone[str(i), 0] for i in range(9) if i != 4)


def test_a_waiting_request_can_be_aborted(checkpoint):
    engine = make_engine(checkpoint, max_num_seqs=2)
    for i in range(4):
        engine.add(ask(str(i), [3, 4, 5]))
    engine.step()
    assert [d.finished for d in engine.abort("3")] == [True]
    assert {name for name, _ in tokens_of(drain(engine))} == {"0", "1", "2"}


def test_prompt_logprobs_are_the_same_however_the_prompt_is_chunked(checkpoint):
    tokens = prompts(1, seed=5)[0]
    results = []
    for budget in (1, 7, 512):
        engine = make_engine(checkpoint, max_num_batched_tokens=budget)
        engine.add(ask("a", tokens, prompt_logprobs=2, max_tokens=2))
        results.append(next(d.prompt_logprobs for d in drain(engine) if d.prompt_logprobs))
    for scored in results:
        assert len(scored) == len(tokens)
        assert scored[0] is None
        for token, entry, other in zip(tokens[1:], scored[1:], results[0][1:], strict=True):
            assert token in entry
            assert 2 <= len(entry) <= 3
            assert entry[token].logprob == pytest.approx(other[token].logprob, abs=1e-4)


def test_scoring_computes_no_row_that_nobody_asked_for(checkpoint):
    engine = make_engine(checkpoint)
    engine.add(ask("a", [5, 6, 7, 8], max_tokens=0, prompt_logprobs=0))
    engine.add(ask("b", [5], max_tokens=0, prompt_logprobs=0))
    last = {d.request_id: d for d in drain(engine) if d.finished}
    assert len(last["a"].prompt_logprobs) == 4
    assert last["a"].ledger.rows == 3
    assert last["b"].prompt_logprobs == [None]
    assert last["a"].finish_reason == "length"


def test_a_prompt_that_is_scored_does_not_stall_those_that_decode(checkpoint, monkeypatch):
    long = [int(t) for t in np.random.default_rng(4).integers(4, 90, 150)]
    scored = ask("scored", long, max_tokens=1, prompt_logprobs=3)
    quiet = make_engine(checkpoint)
    quiet.add(scored)
    expected = drain(quiet)
    monkeypatch.setattr("ockham.engine.assemble.SCORED_LOGITS", 5 * quiet.vocabulary)
    engine = make_engine(checkpoint)
    rows: list[int] = []
    engine.on_scored = lambda request, logits: rows.append(len(logits))
    engine.add(ask("decodes", [5, 6, 7], max_tokens=60, ignore_eos=True))
    engine.step()
    engine.step()
    engine.add(scored)
    deltas = [delta for delta in drain(engine) if delta.request_id == "scored"]
    assert sum(rows) == len(long) - 1
    assert max(rows) == 5
    assert deltas[-1].token_ids == expected[-1].token_ids
    found = next(delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs)
    assert found == next(delta.prompt_logprobs for delta in expected if delta.prompt_logprobs)


def test_a_prompt_that_is_scored_alone_takes_whole_steps(checkpoint, monkeypatch):
    monkeypatch.setattr("ockham.engine.assemble.SCORED_LOGITS", 1)
    engine = make_engine(checkpoint)
    rows: list[int] = []
    engine.on_scored = lambda request, logits: rows.append(len(logits))
    engine.add(ask("scored", [5] * 100, max_tokens=1, prompt_logprobs=0))
    drain(engine)
    assert max(rows) > 50


def test_logits_memory_bounds_the_rows_that_want_them(checkpoint):
    engine = make_engine(checkpoint)
    engine.scheduler.most_logits = 4
    wanted = []
    run = engine.runner.run
    engine.runner.run = lambda step: wanted.append(len(step.wants_logits)) or run(step)
    for i, tokens in enumerate(prompts(9)):
        engine.add(ask(str(i), tokens, prompt_logprobs=0, max_tokens=3))
    drain(engine)
    assert max(wanted) == 4


def test_generation_stops_where_it_should(checkpoint, alone):
    tokens = prompts(9)[2]
    expected = alone["2", 0]
    engine = make_engine(checkpoint)
    stop = expected[6]
    at = expected.index(stop)
    engine.add(ask("a", tokens, stop_token_ids=[stop]))
    deltas = drain(engine)
    assert tokens_of(deltas)["a", 0] == expected[: at + 1]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
    engine.add(ask("b", tokens, stop_token_ids=[stop], min_tokens=at + 3))
    longer = tokens_of(drain(engine))["b", 0]
    assert len(longer) >= at + 3
    assert stop not in longer[: at + 2]


def test_the_context_ends_a_sequence(checkpoint):
    engine = make_engine(checkpoint, max_model_len=32)
    engine.add(ask("a", [5] * 30, max_tokens=100))
    deltas = drain(engine)
    assert len(tokens_of(deltas)["a", 0]) == 2
    assert deltas[-1].finish_reason == "length"


def test_a_hook_at_a_breakpoint_sees_the_activations_and_changes_nothing_by_itself(
    checkpoint, alone
):
    engine = make_engine(checkpoint)
    seen = []
    for name in ("layer.0.before", "layer.1.pattern", "layer.1.after", "head"):
        engine.attach(name, lambda run, name=name: seen.append((name, run.x.shape)))
    assert complete(engine, [ask("0", prompts(9)[0])]) == {("0", 0): alone["0", 0]}
    assert [name for name, _ in seen[:4]] == [
        "layer.0.before",
        "layer.1.pattern",
        "layer.1.after",
        "head",
    ]
    assert seen[0][1] == (len(prompts(9)[0]), 32)
    with pytest.raises(ConfigError, match=r"layer\.9\.before"):
        engine.attach("layer.9.before", lambda run: None)


def test_a_hook_that_changes_the_activations_changes_the_output(checkpoint, alone):
    engine = make_engine(checkpoint)

    def negate(run):
        run.x = -run.x

    engine.attach("layer.1.before", negate)
    assert complete(engine, [ask("0", prompts(9)[0])]) != {("0", 0): alone["0", 0]}


@pytest.mark.parametrize(
    ("tokens", "params", "sentence"),
    [
        ([], {}, "empty"),
        ([5, 97], {}, "token id 97"),
        ([-1], {}, "token id -1"),
        ([5] * 256, {}, "too long"),
        ([5], {"n": 65}, "max_num_seqs"),
        ([5], {"stop": "x"}, "tokenizer"),
        ([5], {"bad_words": ["x"]}, "tokenizer"),
        ([5], {"stop_token_ids": [97]}, "token 97"),
        ([5], {"allowed_token_ids": [1], "min_tokens": 1, "ignore_eos": False}, "min_tokens"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_any_work(
    checkpoint, tokens, params, sentence
):
    engine = make_engine(checkpoint)
    with pytest.raises(InvalidRequest, match=sentence):
        engine.add(ask("a", tokens, **params))
    assert not engine.has_work


def test_a_request_larger_than_the_pool_is_refused_with_what_would_fit(tmp_path):
    engine = make_engine(tiny_llama(tmp_path), max_model_len=128, kv_cache_memory_bytes=None)
    engine.state.groups = tuple(type(g)(g.layers, g.spec, 10, 4) for g in engine.state.groups)
    with pytest.raises(InvalidRequest, match="the pool holds 40"):
        engine.add(ask("a", [5] * 30, max_tokens=60))


def test_a_request_id_in_use_is_refused(checkpoint):
    engine = make_engine(checkpoint)
    engine.add(ask("a", [5]))
    with pytest.raises(InvalidRequest, match="already"):
        engine.add(ask("a", [5]))


def test_masks_that_leave_no_token_end_the_sequence_with_an_error(checkpoint):
    engine = make_engine(checkpoint)
    engine.add(ask("a", [5], bad_words=None, allowed_token_ids=[7], stop_token_ids=[7]))
    assert drain(engine)[-1].finish_reason == "stop"
    engine.add(ask("b", [5], allowed_token_ids=[7, 8], stop_token_ids=[7, 8, 9], max_tokens=3))
    engine.groups["b"].first.drawing.bad_words = [[7], [8]]
    last = drain(engine)[-1]
    assert (last.finish_reason, last.finished) == ("error", True)
