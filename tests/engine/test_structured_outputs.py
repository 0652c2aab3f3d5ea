"""The engine follows a grammar: what it says, when it ends, and what goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from tests.helpers.grammars import SCHEMA
from tests.helpers.tiny import tiny_llama

JSON = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("structured"), tokenizer=True)


def make(checkpoint: Path, **settings: Any) -> Engine:
    values = {"model": str(checkpoint), "max_model_len": 256, "speculative_config": "none"}
    return Engine(EngineConfig(**{**values, **settings}))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return make(checkpoint)


def ask(name: str = "a", **params: Any) -> Request:
    prompt = np.random.default_rng(len(name)).integers(300, 900, 20).tolist()
    values = {"temperature": 0.8, "seed": 3, "max_tokens": 100}
    return Request(
        request_id=name, prompt_token_ids=prompt, params=SamplingParams(**{**values, **params})
    )


class Heard:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.logprobs: list[Any] = []
        self.reason: str | None = None
        self.stop: int | str | None = None

    def add(self, delta: Delta) -> None:
        self.tokens += delta.token_ids
        self.text += delta.text
        self.logprobs += delta.logprobs or []
        self.reason = delta.finish_reason or self.reason
        self.stop = delta.stop_reason or self.stop

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Heard) and self.__dict__ == other.__dict__


def finish(engine: Engine, heard: dict[int, Heard] | None = None) -> dict[int, Heard]:
    heard = {} if heard is None else heard
    while engine.has_work:
        for delta in engine.step():
            heard.setdefault(delta.index, Heard()).add(delta)
    return heard


def hear(engine: Engine, **params: Any) -> dict[int, Heard]:
    engine.take(ask(**params))
    return finish(engine)


def test_an_answer_is_json_of_its_schema_and_stops(engine: Engine) -> None:
    for seed in range(4):
        found = hear(engine, structured_outputs=JSON, seed=seed)[0]
        if found.reason == "length":
            continue
        assert found.reason == "stop"
        assert found.stop is None
        assert list(json.loads(found.text)) == list(SCHEMA["properties"])


def test_an_answer_that_is_complete_ends_without_an_end_token(engine: Engine) -> None:
    asked = StructuredOutputsParams(choice=["yes", "no"])
    found = hear(engine, structured_outputs=asked)[0]
    assert found.text in ("yes", "no")
    assert found.reason == "stop"
    assert engine.eos.isdisjoint(found.tokens)


def test_an_answer_cut_short_says_so(engine: Engine) -> None:
    found = hear(engine, structured_outputs=JSON, max_tokens=3)[0]
    assert found.reason == "length"
    assert found.text.startswith('{"')


def test_an_answer_may_end_where_the_grammar_may(engine: Engine) -> None:
    """The end is likely; it comes after a whole number of repetitions, and never before them."""
    end = min(engine.eos)
    asked = StructuredOutputsParams(regex="(abc)+")
    for seed in range(4):
        how = {"structured_outputs": asked, "logit_bias": {end: 100.0}, "seed": seed}
        assert hear(engine, **how)[0].text == "abc"
        longer = hear(engine, **how, min_tokens=8)[0]
        assert longer.reason == "stop"
        assert longer.text == "abc" * (len(longer.text) // 3)
        assert len(longer.tokens) in (9, 10, 11, 12)


def test_ignore_eos_goes_on_as_long_as_the_grammar_does(engine: Engine) -> None:
    end = min(engine.eos)
    asked = StructuredOutputsParams(regex="(abc){2,5}")
    found = hear(engine, structured_outputs=asked, ignore_eos=True, logit_bias={end: 100.0})[0]
    assert found.text == "abc" * 5
    assert found.reason == "stop"


def test_each_choice_has_a_place_of_its_own(engine: Engine) -> None:
    found = hear(engine, structured_outputs=JSON, n=4, temperature=2.0)
    assert len(found) == 4
    assert len({heard.text for heard in found.values()}) > 1
    for heard in found.values():
        if heard.reason == "stop":
            json.loads(heard.text)


def test_logprobs_change_no_token_and_are_those_of_the_model(engine: Engine) -> None:
    plain = hear(engine, structured_outputs=JSON)[0]
    shown = hear(engine, structured_outputs=JSON, logprobs=2)[0]
    assert shown.tokens == plain.tokens
    assert len(shown.logprobs) == len(shown.tokens)
    # Masks act after the logits: what the grammar forced may be unlikely to the model.
    assert any(e[t].rank > 2 for e, t in zip(shown.logprobs, shown.tokens, strict=True))


def test_stop_strings_and_penalties_act_too(engine: Engine) -> None:
    asked = StructuredOutputsParams(regex="(ab|cd)+")
    found = hear(engine, structured_outputs=asked, stop=["abab"], ignore_eos=True, temperature=2.0)
    assert "abab" not in found[0].text
    assert found[0].reason in ("stop", "length")
    how = {"structured_outputs": asked, "max_tokens": 20, "ignore_eos": True, "temperature": 0.0}
    penalised = hear(engine, **how, frequency_penalty=2.0)[0]
    assert set(penalised.text) == set("abcd")


def test_a_preempted_answer_goes_on_where_it_was(engine: Engine) -> None:
    alone = hear(engine, structured_outputs=JSON)
    engine.take(ask(structured_outputs=JSON))
    heard: dict[int, Heard] = {}
    for number in range(200):
        if number % 5 == 4 and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        for delta in engine.step():
            heard.setdefault(delta.index, Heard()).add(delta)
    assert finish(engine, heard) == alone


def test_a_moved_answer_goes_on_where_it_was(checkpoint: Path, engine: Engine) -> None:
    alone = hear(engine, structured_outputs=JSON)
    other = make(checkpoint)
    engine.take(ask(structured_outputs=JSON))
    heard: dict[int, Heard] = {}
    for _ in range(9):
        for delta in engine.step():
            heard.setdefault(delta.index, Heard()).add(delta)
    other.import_request(engine.export_request("a"))
    assert finish(other, heard) == alone


def test_a_known_token_needs_no_logits(engine: Engine) -> None:
    """The heads' rows are what a step computes logits for."""

    def head_rows(**params: Any) -> list[int]:
        engine.take(ask(structured_outputs=StructuredOutputsParams(choice=["abcdefgh"]), **params))
        rows = []
        run = engine.runner.run
        engine.runner.run = lambda step: rows.append(len(step.wants_logits)) or run(step)  # type: ignore
        try:
            finish(engine)
        finally:
            del engine.runner.run
        return rows

    assert set(head_rows()) == {0}
    assert set(head_rows(logprobs=0)) == {1}
    assert set(head_rows(bad_words=["z"])) == {1}


def test_masks_that_contradict_the_grammar_are_an_error(engine: Engine) -> None:
    asked = StructuredOutputsParams(choice=["yes"])
    found = hear(engine, structured_outputs=asked, allowed_token_ids=[5, 6])[0]
    assert found.reason == "error"
    assert found.stop == "every token was masked"


def test_without_a_tokenizer_it_is_refused(checkpoint: Path) -> None:
    bare = make(checkpoint, skip_tokenizer_init=True)
    with pytest.raises(InvalidRequest, match="need a tokenizer"):
        bare.take(ask(structured_outputs=JSON))


def test_what_is_no_grammar_leaves_the_engine_as_it_was(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        engine.take(ask(structured_outputs=StructuredOutputsParams(regex="(")))
    assert not engine.has_work
    assert hear(engine, max_tokens=3)[0].reason == "length"


@pytest.mark.parametrize("logprobs", [None, 1])
def test_free_drafts_change_no_token_and_save_steps(
    checkpoint: Path, engine: Engine, logprobs: int | None
) -> None:
    config = {"method": "grammar", "adaptive": False}
    drafting = make(checkpoint, speculative_config=config)
    how = {"structured_outputs": JSON, "logprobs": logprobs, "n": 2}
    before = engine.scheduler.steps
    alone = hear(engine, **how)
    plain = engine.scheduler.steps - before
    assert hear(drafting, **how) == alone
    assert drafting.scheduler.steps < 0.75 * plain
    counters = drafting.speculation.counters
    assert counters.accepted == counters.tokens > 0
    saved = drafting.total.saved["grammar"]
    assert 0.8 * counters.accepted < saved.tokens <= counters.accepted
    assert "grammar" not in drafting.total.wasted


def test_what_is_forced_is_drafted_though_drafting_has_lost(
    checkpoint: Path, engine: Engine
) -> None:
    drafting = make(checkpoint, speculative_config="auto")
    account = drafting.speculation.account
    account.book(1.0, -10.0)
    account.book(1.0, -10.0)
    assert not account.open
    assert hear(drafting, structured_outputs=JSON) == hear(engine, structured_outputs=JSON)
    assert not account.open, "what is certain is no merit of the other drafts"
    assert set(drafting.total.saved) == {"grammar"}
    assert not drafting.total.wasted
    steps = drafting.scheduler.steps
    assert len(hear(drafting)[0].tokens) == drafting.scheduler.steps - steps
