"""A simulation does what the engine does, and takes the seconds that are predicted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.rates import Rates, predict
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from ockham.kernels.sampling import Draw
from ockham.lab.replay import Replay
from ockham.lab.workloads import Request, make_workload
from ockham.plan.clock import RealClock, VirtualClock
from ockham.plan.executor import PredictedExecutor
from ockham.plan.playing import Played, play, streams_of
from ockham.plan.simulation import Prompted, measured_rates, prompted, recorded_answers, simulate
from tests.helpers.embedder import embedder

LAB = EngineConfig(threads=1, speculative_config="none", kv_cache_memory_bytes=1 << 26)


def config(**settings: object) -> EngineConfig:
    return msgspec.structs.replace(LAB, **settings)  # type: ignore[arg-type]


def made_up(sizes: list[tuple[int, int]], seed: int = 0, **fields: object) -> Prompted:
    """Requests of prompts of so many tokens and so long answers; no two prompts begin alike."""
    rng = Random(seed)
    found = []
    for number, (prompt, answer) in enumerate(sizes):
        tokens = [rng.randrange(1000) for _ in range(prompt)]
        request = Request(
            id=f"r{number}",
            prompt_token_ids=tokens,
            max_tokens=answer,
            **fields,  # type: ignore[arg-type]
        )
        found.append((request, tokens))
    return found


def run(rates: Rates, requests: Prompted, one: EngineConfig = LAB, **how: object) -> Played:
    return simulate(one, requests, rates=rates, **{"factor": 0.0, **how})  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_figures(rates: Rates) -> None:
    requests = made_up([(50, 20), (200, 5), (10, 40)])
    one = run(rates, requests, rate=3.0, seed=7)
    other = run(rates, requests, rate=3.0, seed=7)
    assert one.figures() == other.figures()
    assert one.requests == other.requests
    assert run(rates, requests, rate=3.0, seed=8).figures() != one.figures()


def test_it_schedules_reuses_and_books_as_the_engine_does(rates: Rates) -> None:
    """Everything comes at once, so that no clock decides."""
    asked = prompted(LAB, make_workload("chat", {"sessions": 4, "turns": 2}).requests(0))
    answers = recorded_answers(LAB, [request for request, _ in asked])
    predicted = run(rates, asked, rate=math.inf, pauses=False, answers=answers)
    engine = Engine(LAB)
    engine.executor = Replay(engine.executor, streams_of(asked, answers, engine.vocabulary))
    measured = play(engine, asked, RealClock(engine.clock), rate=math.inf, pauses=False)
    engine.close()
    for name in ("steps", "rows", "flops", "bytes_read", "preemptions", "generated_tokens"):
        assert getattr(predicted, name) == getattr(measured, name), name
    told = [(each.prompt_tokens, each.reused_tokens) for each in predicted.requests]
    assert told == [(each.prompt_tokens, each.reused_tokens) for each in measured.requests]
    assert any(reused for _, reused in told)


def test_what_was_answered_before_is_reused(rates: Rates) -> None:
    asked = prompted(LAB, make_workload("chat", {"sessions": 1, "turns": 1}).requests(0))
    before = prompted(LAB, make_workload("chat", {"sessions": 1, "turns": 1}).requests(0))
    fresh, later = run(rates, asked), run(rates, asked, before=before)
    assert fresh.requests[0].reused_tokens == 0
    assert later.requests[0].reused_tokens > 0.9 * later.requests[0].prompt_tokens
    assert later.rows < fresh.rows
    assert later.requests[0].first_s < fresh.requests[0].first_s


def test_preemption_is_simulated(rates: Rates) -> None:
    tight = config(kv_cache_memory_bytes=8 << 20, max_model_len=1024)
    requests = made_up([(400, 200)] * 6)
    assert run(rates, requests, tight, rate=math.inf).preemptions > 0
    assert run(rates, requests, rate=math.inf).preemptions == 0


def test_seconds_are_those_of_the_cost_model(rates: Rates) -> None:
    """A prompt in one step, then its decoding."""
    (_, tokens), *_ = requests = made_up([(100, 3)])
    played = run(rates, requests)
    engine = Engine(LAB)
    cost, vocabulary = engine.cost, engine.vocabulary
    engine.close()
    expected = 0.0
    for parts in ([(1, len(tokens))], [(101, 1)], [(102, 1)]):
        taken = predict(cost, rates, parts, 1, vocabulary)
        expected += taken.total - taken.bookkeeping - taken.logits
    assert played.backend_s == pytest.approx(expected, rel=1e-9)
    bookkeeping = 3 * (rates.step_s + rates.sequence_s)
    assert played.seconds == pytest.approx(expected + bookkeeping, rel=1e-9)
    assert played.requests[0].first_s < played.requests[0].end_s


def test_a_slower_machine_takes_longer(rates: Rates) -> None:
    requests = made_up([(300, 30)] * 4)
    fast = run(rates, requests, rate=math.inf)
    slow = run(rates.at(rates.read_bytes_per_s / 2, rates.flops_per_s / 2), requests, rate=math.inf)
    assert slow.seconds == pytest.approx(2 * fast.seconds, rel=1e-6)


def test_waiting_costs_no_real_time_and_queues_as_it_must(rates: Rates) -> None:
    asked = made_up([(100, 10)] * 5)
    requests = [
        (msgspec.structs.replace(request, arrival_s=1000.0 * number), prompt)
        for number, (request, prompt) in enumerate(asked)
    ]
    played = run(rates, requests)
    assert played.seconds > 4000.0
    assert played.real_s < 5.0
    assert played.busy_s < 1.0
    crowd = run(rates, asked, config(max_num_seqs=1), rate=math.inf)
    queues = [each.queue_s for each in crowd.requests]
    assert sorted(queues) == queues
    assert queues[-1] > 3 * crowd.requests[0].end_s


def test_a_request_waits_for_the_one_that_it_comes_after(rates: Rates) -> None:
    first, second = made_up([(20, 5), (30, 5)])
    later = msgspec.structs.replace(second[0], after="r0", arrival_s=2.0)
    played = run(rates, [first, (later, second[1])])
    one, other = played.requests
    assert other.arrival_s == pytest.approx(one.end_s + 2.0)
    hurried = run(rates, [first, (later, second[1])], pauses=False)
    assert hurried.requests[1].arrival_s == pytest.approx(one.end_s)


def test_drafts_are_accepted_by_the_text_that_is_replayed(rates: Rates) -> None:
    drafting = config(speculative_config={"method": "copying", "adaptive": False})
    requests = made_up([(60, 80)])
    prompt = list(requests[0][1])
    repeated = run(rates, requests, drafting, answers={"r0": [*prompt, *prompt][:80]})
    unknown = run(rates, requests, drafting)
    plain = run(rates, requests)
    assert repeated.generated_tokens == unknown.generated_tokens == plain.generated_tokens == 80
    assert repeated.steps < plain.steps / 2
    assert repeated.seconds < plain.seconds
    assert unknown.steps > repeated.steps


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"keep": "recent:window=128"}, 0.02),
        ({"attention_pattern": "streaming:heads=1.0"}, 0.02),
        ({"attention_pattern": "quest:tokens=256"}, 0.02),
        ({"gate": "skip_layers"}, 0.05),
    ],
)
def test_what_a_technique_leaves_out_takes_no_time(
    rates: Rates, settings: dict[str, str], least: float
) -> None:
    # Attention that is dear, so that a few keys less are seen.
    dear = replace(rates, attention=replace(rates.attention, cell_s=1e-7, key_s=1e-7))
    requests = made_up([(1200, 60)])
    whole = run(dear, requests)
    less = run(dear, requests, config(**settings))
    assert less.seconds < (1.0 - least) * whole.seconds
    assert less.generated_tokens == whole.generated_tokens


def test_formats_and_types_of_state_show(rates: Rates) -> None:
    requests = made_up([(800, 40)] * 2)
    plain = run(rates, requests, rate=math.inf)
    assert run(rates, requests, config(quantization="int8"), rate=math.inf).bytes_read < (
        0.7 * plain.bytes_read
    )
    state = run(rates, requests, config(kv_cache_dtype="int8"), rate=math.inf)
    assert state.bytes_read < plain.bytes_read


def test_several_samples_are_drawn(rates: Rates) -> None:
    requests = made_up([(40, 10)], n=4, temperature=1.0)
    played = run(rates, requests)
    assert played.generated_tokens == 40
    assert played.requests[0].choices == 4
    greedy = run(rates, made_up([(40, 10)], n=4))
    assert played.seconds > greedy.seconds


def test_energy_is_power_times_time(rates: Rates) -> None:
    played = run(rates, made_up([(40, 10)]), watts=50.0)
    assert played.joules == pytest.approx(50.0 * played.seconds)
    assert played.figures()["joules"] == played.joules
    assert "joules" not in run(rates, made_up([(40, 10)])).figures()


def test_bookkeeping_that_is_timed_is_added(rates: Rates) -> None:
    requests = made_up([(40, 20)] * 3)
    without = run(replace(rates, step_s=0.0, sequence_s=0.0), requests, rate=math.inf)
    timed = run(rates, requests, rate=math.inf, factor=1.0)
    assert timed.backend_s == pytest.approx(without.backend_s, rel=0.2)
    assert timed.seconds > without.seconds
    beside = run(replace(rates, cold=100.0), requests, rate=math.inf, factor=1.0)
    assert beside.seconds > timed.seconds


def test_what_cannot_be_simulated_is_refused_in_a_sentence(rates: Rates, tmp_path: Path) -> None:
    requests = made_up([(10, 2)])
    with pytest.raises(ConfigError, match="kv_store works beside the engine's steps"):
        run(rates, requests, config(kv_store=str(tmp_path)))
    with pytest.raises(ConfigError, match="swap_space works beside"):
        run(rates, requests, config(swap_space=0.5))
    with pytest.raises(ConfigError, match="drafts by what the model itself computes"):
        run(rates, requests, config(speculative_config="recycling"))
    with pytest.raises(ConfigError, match="without the weight format 'int8'"):
        run(
            replace(rates, products={"bf16": rates.products["bf16"]}),
            requests,
            config(quantization="int8"),
        )
    with pytest.raises(ConfigError, match="only models that generate text can be simulated"):
        run(rates, requests, EngineConfig(model=str(embedder(tmp_path / "embedder"))))
    with pytest.raises(ConfigError, match="request 'r0' of the workload cannot be answered"):
        run(rates, made_up([(300, 2)]), config(max_model_len=128))


def test_a_mask_is_kept_to(rates: Rates) -> None:
    engine = Engine(LAB)
    executor = PredictedExecutor(
        engine.model.program, engine.model.layouts, rates, VirtualClock(0.0), {5: [1, 2, 70]}
    )
    engine.close()
    mask = np.zeros(engine.vocabulary // 32, np.uint32)

    def drawn(position: int) -> int | None:
        params = SamplingParams(temperature=0.0)
        (found,) = executor.sample(np.zeros((1, 1)), [Draw(0, params, 5, 0, position, mask=mask)])
        return found.token

    assert drawn(2) is None
    mask[1] = 1 << 8  # token 40
    assert drawn(2) == 40
    mask[2] = 1 << 6  # token 70
    assert drawn(2) == 70


@pytest.mark.skipif(core is None, reason="the probes are those of the native core")
def test_rates_are_measured_where_none_are_given() -> None:
    measured = measured_rates(LAB)
    assert set(measured.products) == {"bf16"}
    assert measured.cold >= 1.0
    assert measured.drawn_s > measured.logit_s
