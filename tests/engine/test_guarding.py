"""The guard through an engine: what it scores, what it switches off, and that it is in no one's
way."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ockham.core.errors import ConfigError
from ockham.core.guarded import GuardStats
from ockham.core.registry import make_ask
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.guarding import GRAMMAR_TOKENS, MOST_QUEUED, Guard
from ockham.engine.idling import Idle, idle_of
from ockham.engine.intake import Held, Intake
from ockham.engine.messages import (
    Abort,
    Delta,
    GuardQuery,
    GuardReport,
    Refused,
    Request,
)
from ockham.engine.sleeping import ROWS, Sleeper
from ockham.kernels.native import core
from tests.helpers import serving
from tests.helpers.adapters import write_adapter
from tests.helpers.encoders import ENCODERS
from tests.helpers.planted import NAME, Planted, plant
from tests.helpers.registering import let_register
from tests.helpers.serving import ask, tokens_of
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("guarding"))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    let_register(monkeypatch)
    return plant()


class Service:
    """An engine with a guard, as its process has them. Time is told by hand."""

    def __init__(self, checkpoint: Path, **settings: Any) -> None:
        values = {"guard": 1.0, "threads": 1, "speculative_config": "none", **settings}
        self.engine: Engine = serving.make_engine(checkpoint, **values)
        self.now_s = 0.0
        self.guard = Guard(self.engine, lambda: self.now_s)
        self.idle = Idle(Sleeper(self.engine, None), self.guard)
        self.held = Held()
        self.intake = Intake(self.idle, self.held)
        self._random = Random(7)
        self._asked = 0

    def serve(self, requests: Sequence[Request]) -> list[Delta]:
        """Answer requests, one beside the other."""
        said: list[Delta] = []
        for request in requests:
            for answer in self.intake.take(request):
                assert isinstance(answer, Delta), answer
                said.append(answer)
        self.idle.give_way()
        while self.held:
            assert not self.intake.ready()
            deltas = self.idle.after(self.engine.step())
            self.held.update_from(deltas)
            said += deltas
        return said

    def rest(self, most_steps: int = 100_000) -> int:
        """Idle until there is nothing to do; how many steps that took."""
        for steps in range(most_steps):
            if not self.engine.has_work and not self.guard.wake():
                return steps
            assert not self.idle.after(self.engine.step())
            self.engine.check_integrity()
        raise AssertionError("it does not come to an end")

    def asks(self, count: int, tokens: int = 24, **params: Any) -> list[Request]:
        """Requests with prompts of their own."""
        values = {"max_tokens": 24, **params}
        found = []
        for _ in range(count):
            self._asked += 1
            prompt = [self._random.randrange(2, 97) for _ in range(tokens)]
            found.append(ask(f"r{self._asked}", prompt, **values))
        return found

    def make_room(self) -> None:
        """Work that is not watched, and of which the guard may take its share."""
        plain = self.asks(20)
        for request in plain:
            request.exact = True
        self.serve(plain)

    @property
    def found(self) -> GuardStats:
        return self.guard.stats()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 0.9, "n": 2},
        {"temperature": 1.2, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
        {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0.7, "min_tokens": 24, "ignore_eos": False},
        {"logit_bias": {5: 3.0}, "allowed_token_ids": list(range(2, 60))},
        {"logprobs": 2},
    ],
)
def test_what_changes_nothing_agrees_at_every_position(
    checkpoint: Path, planted: type[Planted], params: dict[str, Any]
) -> None:
    """At any temperature, and whatever else is asked: the noise is known."""
    service = Service(checkpoint, gate=NAME)
    service.serve(service.asks(24, **params))
    service.rest()
    (use,) = service.found.uses
    assert use.techniques == (f"gate/{NAME}",)
    assert use.workload == "completion, short"
    assert use.texts >= 16
    assert use.positions == use.agreed
    assert use.positions > 8 * use.texts
    assert use.kl_positions > 0
    assert use.kl_nats == pytest.approx(0.0, abs=1e-9)


def test_agreement_is_what_the_exact_model_would_have_said(
    checkpoint: Path, planted: type[Planted]
) -> None:
    """Scored by hand: each token of a text beside what the exact engine samples after the tokens
    before it."""
    planted.every = 2
    service = Service(checkpoint, gate=NAME, kv_cache_memory_bytes=1 << 22)
    exact = serving.make_engine(checkpoint, threads=1)
    requests = service.asks(3, temperature=0.9, seed=11, max_tokens=16)
    said = tokens_of(service.serve(requests))
    service.make_room()
    service.rest()
    agreed = 0
    for request in requests:
        tokens = said[request.request_id, 0]
        for place, token in enumerate(tokens):
            # The noise of a position is that of the request, whose prompt has grown.
            prompt = [*request.prompt_token_ids, *tokens[:place]]
            name = f"{request.request_id} {place}"
            again = ask(name, prompt, max_tokens=1, temperature=0.9, seed=11)
            exact.add(again)
            agreed += tokens_of(serving.drain(exact))[again.request_id, 0] == [token]
    (use,) = service.found.uses
    assert use.positions == 3 * 16
    assert use.agreed == agreed
    assert 0 < agreed < 48


def test_one_that_goes_bad_in_service_is_switched_off_and_one_that_is_fine_is_not(
    checkpoint: Path, planted: type[Planted]
) -> None:
    service = Service(checkpoint, gate=NAME, guard_floor="agreement>=0.97")
    for _ in range(10):
        service.serve(service.asks(4))
        service.rest()
    (use,) = service.found.uses
    assert use.state == "on"
    good = use.positions
    planted.every = 8  # one place in eight
    while use.state == "on":
        said = service.serve(service.asks(4))
        assert all(delta.report is None for delta in said)
        service.rest()
        (use,) = service.found.uses
        assert use.positions - good <= 1000
    assert use.positions - good <= 500
    (event,) = service.found.events
    assert (event.event, event.reason) == ("off", "agreement is under 0.97")

    # From now on answers are those of the exact model, and say so.
    requests = service.asks(3, n=2, temperature=0.8, seed=3)
    said = service.serve(requests)
    ends = [delta for delta in said if delta.finish_reason is not None]
    assert len(ends) == 6
    assert all(end.report == {"guard": {"left_out": [f"gate/{NAME}"]}} for end in ends)
    exact = serving.make_engine(checkpoint, threads=1)
    for request in requests:
        exact.add(request)
    assert tokens_of(serving.drain(exact)) == tokens_of(said)
    assert service.found.uses[0].left_out == 3


def test_it_comes_back_when_it_is_good_again(checkpoint: Path, planted: type[Planted]) -> None:
    service = Service(checkpoint, gate=NAME, guard_floor="agreement>=0.9", guard_rest_s=60.0)
    planted.every = 2
    while service.found.uses == [] or service.found.uses[0].state == "on":
        service.serve(service.asks(8, tokens=4, max_tokens=20))
        service.rest()
    planted.every = 0
    service.now_s += 61.0
    for _ in range(60):
        service.serve(service.asks(16, tokens=4, max_tokens=20))
        service.rest()
        if service.found.uses[0].state == "on":
            break
    assert [event.event for event in service.found.events] == ["off", "probation", "on"]
    (use,) = service.found.uses
    assert use.left_out > 4 * (use.texts - 40)  # few tried it


def test_a_divergence_over_the_floor_switches_off(checkpoint: Path, planted: type[Planted]) -> None:
    planted.every = 3
    service = Service(checkpoint, gate=NAME, guard_floor="kl<=0.02")
    for _ in range(40):
        service.serve(service.asks(4))
        service.rest()
        if service.found.uses[0].state == "off":
            break
    (use,) = service.found.uses
    assert use.state == "off"
    assert use.kl is not None
    assert use.kl > 0.02
    assert use.kl_positions == use.positions


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_it_computes_at_most_its_share_of_rows(
    checkpoint: Path, planted: type[Planted], share: float
) -> None:
    service = Service(checkpoint, gate=NAME, guard=share, max_num_seqs=16)
    for _ in range(30):
        service.serve(service.asks(10, tokens=16, max_tokens=16))
        service.rest()
        found = service.found
        assert found.rows <= share * found.traffic_rows
    assert found.rows > 0.5 * share * found.traffic_rows
    assert found.rows + found.traffic_rows == service.engine.total.rows
    chosen = found.shadowed + found.queued + found.dropped
    assert chosen == pytest.approx(300 * share, rel=0.5)


def test_a_request_that_comes_meanwhile_waits_for_one_small_step(
    checkpoint: Path, planted: type[Planted]
) -> None:
    service = Service(checkpoint, gate=NAME, max_model_len=400)
    service.make_room()
    service.serve(service.asks(1, tokens=300, max_tokens=20))
    alone = tokens_of(Service(checkpoint, gate=NAME).serve([ask("a", [5, 6, 7])]))
    assert service.guard.wake()
    before = service.engine.total.rows
    service.idle.after(service.engine.step())
    assert 0 < service.engine.total.rows - before <= ROWS
    said = service.serve([ask("a", [5, 6, 7])])
    assert not service.guard.running
    assert tokens_of(said) == alone
    assert service.engine.scheduler.most_rows == service.engine.config.max_num_batched_tokens
    # What was computed is not computed again.
    before = service.engine.total.rows
    service.rest()
    scored = service.engine.total.rows - before
    assert service.found.uses[0].texts == 2
    assert scored < 2 * (300 + 20) + 2 * 23 - ROWS + 2 * service.engine.state.page_tokens


def test_a_busy_engine_does_none_of_it(checkpoint: Path, planted: type[Planted]) -> None:
    """With work in every step no row is computed for the guard."""
    service = Service(checkpoint, gate=NAME)
    service.serve(service.asks(20))
    assert service.found.rows == 0
    assert service.found.queued == 20


def test_what_waits_is_bounded(checkpoint: Path, planted: type[Planted]) -> None:
    service = Service(checkpoint, gate=NAME)
    service.serve(service.asks(MOST_QUEUED + 9, tokens=2, max_tokens=1))
    assert service.found.queued == MOST_QUEUED
    assert service.found.dropped == 9


def test_what_cannot_be_scored_is_counted_apart(checkpoint: Path, planted: type[Planted]) -> None:
    service = Service(checkpoint, gate=NAME)
    service.serve(service.asks(2, asks={"search/superposed": True}, n=2, temperature=0.9))
    assert (service.found.apart, service.found.queued) == (2, 0)
    service.serve(service.asks(1, max_tokens=0, prompt_logprobs=0))
    assert (service.found.apart, service.found.queued) == (3, 0)


def test_requests_that_end_early_leave_nothing(checkpoint: Path, planted: type[Planted]) -> None:
    service = Service(checkpoint, gate=NAME)
    (request,) = service.asks(1)
    assert service.intake.take(request) == []
    service.engine.step()
    (last,) = service.intake.take(Abort(request.request_id))
    assert isinstance(last, Delta)
    assert last.finish_reason == "abort"
    wrong = ask("wrong", [5, 200])
    (refused,) = service.intake.take(wrong)
    assert isinstance(refused, Refused)
    # A second one of an id is refused, and the first one is scored.
    (request,) = service.asks(1)
    service.intake.take(request)
    (refused,) = service.intake.take(request)
    assert isinstance(refused, Refused)
    while service.engine.has_work:
        service.idle.after(service.engine.step())
    assert service.found.queued == 1
    assert not service.guard._open
    assert not service.guard._notes


def test_techniques_that_requests_ask_for_are_watched_apart(checkpoint: Path) -> None:
    """By their settings: who asks for a bad one does not take a good one away from others."""
    service = Service(checkpoint, reuse="prefix,edit", guard_floor="agreement>=0.97")
    good = {"asks": {"keep/recent": {"window": 200, "sinks": 4}}}
    bad = {"asks": {"gate/skip_layers": {"layers": [1]}}}
    for _ in range(30):
        service.serve(service.asks(2, **good) + service.asks(2, **bad) + service.asks(2))
        service.rest()
    by_name = {use.techniques: use for use in service.found.uses}
    assert by_name["keep/recent",].state == "on"
    assert by_name["keep/recent",].agreement == 1.0
    assert by_name["gate/skip_layers",].state == "off"
    assert len(by_name) == 2
    said = service.serve(service.asks(1, **good) + service.asks(1, **bad))
    marked = {delta.request_id for delta in said if delta.report}
    assert len(marked) == 1


@pytest.mark.parametrize(
    "asks",
    [
        {"keep/recent": {"window": 24, "sinks": 4, "block": 16}},
        {"keep/snapkv": True},
        {"pattern/streaming": True},
        {"pattern/quest": True},
        {"gate/skip_layers": {"layers": [1]}},
        {"verifier/lenient": True},
    ],
)
def test_each_kind_of_technique_is_scored_and_can_be_left_out(
    checkpoint: Path, asks: dict[str, Any]
) -> None:
    service = Service(checkpoint, speculative_config="auto", guard_floor="agreement>=0.97")
    service.serve(service.asks(16, tokens=80, asks=asks))
    service.rest()
    (use,) = service.found.uses
    assert use.texts >= 10
    assert use.agreement is not None
    (seam_and_name,) = asks
    compared = not seam_and_name.startswith("verifier/")
    service = Service(checkpoint, guard_floor="kl<=0.02", speculative_config="auto")
    service.serve(service.asks(8, tokens=80, asks=asks))
    service.rest()
    assert bool(service.found.uses[0].kl_positions) == compared


def test_a_reuse_is_scored_by_agreement_alone(checkpoint: Path) -> None:
    service = Service(checkpoint, reuse="prefix,edit", guard_floor="agreement>=0.97, kl<=0.02")
    requests = service.asks(12, tokens=60)
    for request in requests:
        request.asks = {"reuse/edit": make_ask("reuse/edit", True)}
    service.serve(requests)
    service.rest()
    (use,) = service.found.uses
    assert use.techniques == ("reuse/edit",)
    assert use.texts == 12
    assert use.kl_positions == 0


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_an_adapter_is_part_of_the_exact_model(
    checkpoint: Path, tmp_path: Path, planted: type[Planted]
) -> None:
    path = write_adapter(tmp_path / "own")
    asks = {"adapter/lora": {"name": "own", "path": str(path)}}
    service = Service(checkpoint, gate=NAME, adapter="lora")
    service.serve(service.asks(8, asks=asks) + service.asks(8))
    service.make_room()
    service.rest()
    by_settings = {use.settings: use for use in service.found.uses}
    assert len(by_settings) == 1, "an adapter is no approximation"
    (use,) = by_settings.values()
    assert use.texts == 16
    assert use.agreed == use.positions
    service.serve(service.asks(1, asks=asks))
    shutil.rmtree(path)  # it cannot be had again
    service.rest()
    assert service.found.dropped == 1


def test_texts_that_follow_a_grammar_are_scored_with_it(
    tmp_path: Path, planted: type[Planted]
) -> None:
    directory = tiny_llama(tmp_path / "words", tokenizer=True)
    service = Service(directory, gate=NAME, skip_tokenizer_init=False)
    structured = StructuredOutputsParams(regex="[a-z]{5,300}")
    requests = service.asks(4, temperature=0.9, max_tokens=40, structured_outputs=structured)
    requests += service.asks(2, temperature=0.9, bad_words=["a", "the"])
    service.engine.grammars.compile(structured).result()
    service.serve(requests)
    service.rest()
    (use,) = service.found.uses
    assert use.texts == 6
    assert use.agreed == use.positions > 4
    assert GRAMMAR_TOKENS >= 16


def test_nothing_is_guarded_by_default_nor_where_no_text_is_generated(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert idle_of(serving.make_engine(checkpoint)).guard is None
    ENCODERS["bert"].save(tmp_path)
    with pytest.raises(ConfigError, match=r"guard is 0.1, but .* is an encoder"):
        serving.make_engine(tmp_path, guard=0.1, max_model_len=96)
    engine = serving.make_engine(checkpoint, guard=0.1, task="embed")
    with caplog.at_level("WARNING", "ockham.engine"):
        assert idle_of(engine).guard is None
    assert "generates none: nothing is guarded" in caplog.text


def test_it_is_asked_as_the_cache_is(checkpoint: Path, planted: type[Planted]) -> None:
    service = Service(checkpoint, gate=NAME)
    service.serve(service.asks(2))
    (report,) = service.intake.take(GuardQuery(ask_id="q"))
    assert isinstance(report, GuardReport)
    assert report.guard is not None
    assert report.guard.queued == 2
    assert service.idle.stats().guard == report.guard


def test_what_fits_only_with_its_technique_is_served_with_it_and_told(checkpoint: Path) -> None:
    """A long text whose state the pool cannot hold whole."""
    page = 2 * 2 * 2 * 8 * 4 * 16  # K and V, layers, heads, head_dim, fp32, tokens
    service = Service(
        checkpoint,
        keep="recent:window=48,sinks=4,block=16",
        guard_floor="agreement>=0.97",
        kv_cache_memory_bytes=10 * page,
        max_num_batched_tokens=32,
    )
    for _ in range(40):
        service.serve(service.asks(2, tokens=100, max_tokens=20))
        service.rest()
        if service.found.uses[0].state == "off":
            break
    assert service.found.uses[0].state == "off"
    short, long = service.asks(1, tokens=100), service.asks(1, tokens=180)
    said = service.serve(short + long)
    told = {delta.request_id: delta.report for delta in said if delta.report}
    assert told == {
        short[0].request_id: {"guard": {"left_out": ["keep/recent"]}},
        long[0].request_id: {"guard": {"under_floor": ["keep/recent"]}},
    }
