"""Requests that wait for a grammar are beside the engine's steps, and can be given up there."""

from __future__ import annotations

import time

import pytest

from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.idling import idle_of
from ockham.engine.intake import Held, Intake
from ockham.engine.messages import Abort, Delta, Refused, Request
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = tiny_llama(tmp_path_factory.mktemp("intake"), tokenizer=True)
    return Engine(EngineConfig(model=str(directory), max_model_len=256))


def ask(name: str, regex: str, n: int = 1) -> Request:
    structured = StructuredOutputsParams(regex=regex)
    params = SamplingParams(max_tokens=5, n=n, structured_outputs=structured)
    return Request(request_id=name, prompt_token_ids=[5, 6], params=params)


def wait(intake: Intake) -> list[object]:
    answers: list[object] = []
    until_s = time.monotonic() + 60
    while intake.waiting and time.monotonic() < until_s:
        answers += intake.ready()
        time.sleep(0.005)
    return answers


def test_a_request_waits_for_its_grammar_and_then_runs(engine: Engine) -> None:
    held = Held()
    intake = Intake(idle_of(engine), held)
    assert intake.take(ask("a", "[a-c]{20}")) == []
    assert intake.waiting
    assert held == {"a"}
    assert not engine.has_work
    assert wait(intake) == []
    assert engine.has_work
    while engine.has_work:
        held.update_from(engine.step())
    assert held == set()
    # Known by now, it does not wait again.
    assert intake.take(ask("b", "[a-c]{20}")) == []
    assert not intake.waiting
    engine.abort("b")


def test_what_is_no_grammar_is_refused_when_that_is_known(engine: Engine) -> None:
    held = Held()
    intake = Intake(idle_of(engine), held)
    assert intake.take(ask("a", "[a-c")) == []
    (refused,) = wait(intake)
    assert isinstance(refused, Refused)
    assert refused.status == 400
    assert "unclosed" in refused.message
    assert held == set()


def test_a_waiting_request_can_be_given_up(engine: Engine) -> None:
    held = Held()
    intake = Intake(idle_of(engine), held)
    assert intake.take(ask("a", "[d-f]{1,30}", n=3)) == []
    deltas = intake.take(Abort("a"))
    assert [d.finish_reason for d in deltas if isinstance(d, Delta)] == ["abort"] * 3
    assert isinstance(deltas[-1], Delta)
    assert deltas[-1].finished
    assert deltas[-1].ledger is not None
    assert held == set()
    assert wait(intake) == []
    assert not engine.has_work
