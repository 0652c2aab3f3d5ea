"""Companions: other models that write for searches. What they write, what it costs, and what
becomes of a request when one fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.price import Work, cost_of_work, joules_of
from ockham.core.probe import Probe, ProbeFacts
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Action, Branch, Finish, SearchState, Write
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.model.checkpoint.probe_files import write_probe
from tests.helpers import serving
from tests.helpers.tiny import tiny_llama

PROMPT = [(7 * i) % 4096 for i in range(40)]
SURE = {"method": "cascade", "by": "mean", "sure": 1e-9}
make_engine = partial(
    serving.make_engine, skip_tokenizer_init=False, max_model_len=200, speculative_config="none"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), tokenizer=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("small")
    return tiny_llama(where, tokenizer=True, seed=4, num_hidden_layers=1)


@pytest.fixture(scope="module")
def engine(checkpoint: Path, small: Path) -> Engine:
    return make_engine(checkpoint, companions={"small": str(small)})


def request(name: str, search: Any = None, **params: Any) -> Request:
    values = {"temperature": 1.0, "seed": 5, "max_tokens": 24, **params}
    return Request(
        request_id=name,
        prompt_token_ids=PROMPT,
        params=SamplingParams(search=search, **values),  # type: ignore[call-arg]
    )


def inner_of(engine: Engine) -> Engine:
    (inner,) = engine.companions._engines.values()
    assert isinstance(inner, Engine)
    return inner


def is_empty(engine: Engine) -> None:
    for each in (engine, inner_of(engine)):
        each.check_integrity()
        assert each.stats().pages_used == each.scheduler.reserved_seats == 0
        assert not each.has_work
    assert not engine.companions.busy


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"presence_penalty": 1.5}])
def test_a_companion_says_what_it_would_say_alone(
    engine: Engine, small: Path, params: dict[str, Any]
) -> None:
    by_itself = make_engine(small)
    tokens = serving.serve(by_itself, [request("a", **params)])["a"][0].tokens
    params = {**params, "stop_token_ids": tokens[9:10]}
    alone = serving.serve(by_itself, [request("a", **params)])["a"][0]
    found, bill = serving.serve(engine, [request("a", SURE, **params)])["a"]
    assert found == alone
    assert 1 < len(found.tokens) <= 10
    reused = bill.saved["prefix"].tokens if "prefix" in bill.saved else 0
    assert bill.rows + reused == len(PROMPT) + bill.generated_tokens - 1
    assert bill.saved["cascade"].tokens == len(PROMPT) + bill.generated_tokens
    is_empty(engine)


def test_the_model_answers_as_it_would_alone_if_its_companion_is_turned_down(
    engine: Engine, checkpoint: Path
) -> None:
    alone = serving.serve(make_engine(checkpoint), [request("a")])["a"][0]
    found, bill = serving.serve(engine, [request("a", {**SURE, "sure": 1.0})])["a"]
    assert found == alone
    assert bill.prompt_tokens == bill.prompt_tokens_computed + bill.prompt_tokens_reused
    is_empty(engine)


def test_bills_add_up_to_what_both_models_have_computed(checkpoint: Path, small: Path) -> None:
    engine = make_engine(checkpoint, companions={"small": str(small)})
    searches = [SURE, {**SURE, "sure": 1.0}, None, {"method": "switch", "entropy": 3.0}]
    wanted = [request(str(i), search, seed=i) for i, search in enumerate(searches)]
    bills = [bill for _, bill in serving.serve(engine, wanted).values()]
    total = Ledger()
    for bill in bills:
        total.add(bill)
    for name in ("rows", "flops", "weight_bytes", "state_read_bytes", "state_written_bytes"):
        assert getattr(total, name) == getattr(engine.total, name)
    inner = inner_of(engine).total
    assert 0 < inner.rows < engine.total.rows


def test_companions_end_with_the_caller(engine: Engine) -> None:
    engine.take(request("gone", SURE, max_tokens=100))
    engine.take(request("stays", SURE))
    for _ in range(6):
        engine.step()
    assert inner_of(engine).has_work
    (last,) = engine.abort("gone")
    assert last.ledger is not None
    assert last.ledger.rows
    serving.drain(engine)
    is_empty(engine)


def test_the_model_goes_on_where_a_companion_fails(checkpoint: Path, small: Path) -> None:
    engine = make_engine(checkpoint, companions={"small": str(small)})
    alone = serving.serve(make_engine(checkpoint), [request("a")])["a"][0]

    def fail(run: object) -> None:
        raise RuntimeError("planted")

    inner_of(engine).attach("layer.0.before", fail)
    for method in ("cascade", "switch", "step_drafts", "lent_thought"):
        engine.take(request("a", {"method": method}))
        deltas = serving.drain(engine)
        assert serving.tokens_of(deltas)["a", 0] == alone.tokens
        (report,) = [delta.report for delta in deltas if delta.report]
        assert report[method]["failed"] == "a companion met a fault."
        is_empty(engine)


def test_a_companion_must_have_the_tokens_of_the_model(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tiny_llama(tmp_path_factory.mktemp("other"), tokenizer=True)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="has another tokenizer than the model"):
        make_engine(checkpoint, companions={"small": str(other)})
    with pytest.raises(ConfigError, match="the companion 'small': "):
        make_engine(checkpoint, companions="small=/nowhere")
    with pytest.raises(ConfigError, match="has no model; write NAME=MODEL"):
        make_engine(checkpoint, companions="small")


def test_a_prompt_that_is_too_long_for_the_companion_is_refused(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = tiny_llama(tmp_path_factory.mktemp("short"), tokenizer=True, max_position_embeddings=40)
    engine = make_engine(checkpoint, companions={"short": str(short)})
    with pytest.raises(InvalidRequest, match="has 40 tokens, and the companion short reads 40"):
        engine.take(request("a", SURE))
    with pytest.raises(InvalidRequest, match="cascade has no companion 'no'"):
        engine.take(request("a", {**SURE, "model": "no"}))


def probe(directory: Path, name: str, chance: float, width: int = 32) -> str:
    """A router that says the same of every prompt."""
    out = directory / name
    out.mkdir()
    bias = float(np.log(chance / (1 - chance)))
    facts = ProbeFacts(0, "small", "none", "prompt")
    write_probe(out, Probe(facts, np.zeros(width, np.float32), bias))
    return str(out)


def routed(engine: Engine, search: dict[str, Any]) -> tuple[str, dict[str, float]]:
    engine.take(request("a", {"method": "route", **search}))
    (report,) = [delta.report for delta in serving.drain(engine) if delta.report]
    is_empty(engine)
    return report["route"]["answered_by"], report["route"]["chances"]


def test_a_router_gives_a_request_to_the_cheapest_that_is_likely_to_be_right(
    checkpoint: Path, small: Path, tmp_path: Path
) -> None:
    probes = {name: probe(tmp_path, name, float(name[1:]) / 10) for name in ("p2", "p8")}
    engine = make_engine(checkpoint, companions={"small": str(small)}, probes=probes)
    assert routed(engine, {"router": "p8"}) == ("small", {"small": 0.8})
    assert routed(engine, {"router": "p8", "sure": 0.9}) == ("model", {"small": 0.8})
    assert routed(engine, {"router": "p2"}) == ("model", {"small": 0.2})
    by_itself = serving.serve(make_engine(small), [request("a")])["a"][0]
    said = serving.serve(engine, [request("a", {"method": "route", "router": "p8"})])["a"][0]
    assert said == by_itself
    with pytest.raises(InvalidRequest, match="small has several probes; name one of them"):
        engine.take(request("a", {"method": "route"}))


def test_a_budget_leaves_out_whoever_would_take_more(
    checkpoint: Path, small: Path, tmp_path: Path
) -> None:
    engine = make_engine(
        checkpoint, companions={"small": str(small)}, probes={"p": probe(tmp_path, "p", 0.2)}
    )
    work = Work(len(PROMPT), 24)
    own, others = (joules_of(cost_of_work(each.cost, work)) for each in (engine, inner_of(engine)))
    assert others < own
    assert routed(engine, {"joules": 1.01 * own, "tokens": 24}) == ("model", {"small": 0.2})
    assert routed(engine, {"joules": 0.99 * own, "tokens": 24}) == ("small", {"small": 0.2})
    assert routed(engine, {"joules": 0.5 * others, "tokens": 24}) == ("small", {})
    slow = {"gflops": 1e-3, "gbytes": 1e-3}
    assert routed(engine, {"seconds": 1e-3, **slow})[0] == "small"


def test_a_probe_must_fit_one_of_the_models(checkpoint: Path, small: Path, tmp_path: Path) -> None:
    wide = probe(tmp_path, "wide", 0.5, width=33)
    with pytest.raises(ConfigError, match="reads 33 values after layer 0 of 'small', but this"):
        make_engine(checkpoint, companions={"small": str(small)}, probes=f"p={wide}")


@pytest.mark.parametrize("method", ["switch", "route", "step_drafts", "lent_thought", "cascade"])
def test_the_model_goes_on_where_its_companion_has_no_room(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, method: str
) -> None:
    where = tmp_path_factory.mktemp("short")
    short = tiny_llama(where, tokenizer=True, max_position_embeddings=45, num_hidden_layers=1)
    engine = make_engine(checkpoint, companions={"short": str(short)})
    settings = {"switch": {"entropy": 100.0}, "route": {"joules": 1e-12}}
    search = {"method": method, **settings.get(method, {})}
    tokens = serving.serve(engine, [request("a", search, ignore_eos=True)])["a"][0].tokens
    assert len(tokens) == 24
    is_empty(engine)


class Writing(SearchState):
    """Writes given tokens and sees how sure the model is of them."""

    scores: ClassVar[bool] = True
    watches: ClassVar[bool] = True
    holds: ClassVar[bool] = False

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self.found: list[float] = []

    @property
    def width(self) -> int:
        return 1

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        branch = branches[0]
        if branch.length == 1:
            return [Write(0, self._tokens, scored=True)]
        self.found = branch.scores.logprobs[1 : 1 + len(self._tokens)]
        return [Finish([0])]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 3}, {"speculative_config": "copying"}, {"reuse": "none"}],
)
def test_what_is_written_is_scored_as_a_prompt_is(
    checkpoint: Path, settings: dict[str, Any]
) -> None:
    engine = make_engine(checkpoint, **settings)
    tokens = [(11 * i) % 4096 for i in range(1, 12)]
    for name in ("a", "again"):  # where the state is held, its rows are computed for their scores
        search = Writing(tokens)
        engine.take(request(name, ignore_eos=True), search)
        said = serving.tokens_of(serving.drain(engine))[name, 0]
        assert said[1:12] == tokens
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0)
    engine.take(Request(request_id="b", prompt_token_ids=[*PROMPT, said[0], *tokens], params=asked))
    (scored,) = [d.prompt_logprobs for d in serving.drain(engine) if d.prompt_logprobs]
    expected = [entry[token].logprob for entry, token in zip(scored[-11:], tokens, strict=True)]  # type: ignore[index]
    np.testing.assert_allclose(search.found, expected, rtol=1e-5)
