"""Drafters that draft with parts of the model that they draft for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError
from ockham.core.rows import build_step
from ockham.core.seams import OwnRows, Seen
from ockham.draft.early_exit import EarlyExit
from ockham.draft.medusa import StandingStream
from ockham.draft.prompt_tokens import GuessingStream
from ockham.engine.engine import Engine
from tests.helpers.drafting import VOCABULARY, answers
from tests.helpers.serving import make_engine
from tests.helpers.tiny import tiny_llama, tiny_mistral
from tests.helpers.trained_drafts import METHODS, write_draft

SIZES = {"hidden_size": 32, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
MARKS = 3


@pytest.fixture(scope="module", params=["full", "window"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "window":
        return tiny_mistral(directory, vocab_size=VOCABULARY, window=16)
    return tiny_llama(directory, vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer adds nothing to the first."""
    directory = tiny_llama(tmp_path_factory.mktemp("shallow"), vocab_size=VOCABULARY)
    weights = load_file(directory / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.1.{name}.weight"] *= 0.0
    save_file(weights, directory / "model.safetensors")
    return directory


def drafts(directory: Path, method: str, **changed: Any) -> dict[str, Any]:
    """A setting for a drafter of random weights."""
    path = write_draft(directory / method, method, **{**SIZES, **changed})
    return {"method": method, "model": str(path)}


def drafting_engine(target: Path, drafting: dict[str, Any] | str, **settings: Any) -> Engine:
    if isinstance(drafting, dict):
        drafting = {"adaptive": False, "num_speculative_tokens": 5, **drafting}
    values = {"max_model_len": 200, "block_size": 4, **settings}
    return make_engine(target, speculative_config=drafting, **values)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_texts_are_the_same(target: Path, method: str, adaptive: bool, tmp_path: Path) -> None:
    drafting = drafts(tmp_path, method) | {"adaptive": adaptive}
    engine = drafting_engine(target, drafting)
    assert answers(engine) == answers(drafting_engine(target, "none"))
    counted = engine.stats().drafts
    assert counted.planned
    if not adaptive:
        assert counted.tokens
        wasted = engine.total.wasted[method].tokens
        assert wasted >= counted.tokens - counted.accepted


def test_texts_are_the_same_where_pages_are_short(shallow: Path, tmp_path: Path) -> None:
    cell = 2 * 2 * 2 * 8 * 4
    for method in METHODS:
        engine = drafting_engine(
            shallow, drafts(tmp_path, method), kv_cache_memory_bytes=130 * cell, max_model_len=120
        )
        found = answers(engine, max_tokens=39)
        assert found == answers(drafting_engine(shallow, "none"), max_tokens=39)
        assert engine.scheduler.preemptions


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_early_exit_that_is_always_right_is_always_accepted(
    shallow: Path, temperature: float
) -> None:
    engine = drafting_engine(shallow, {"method": "early_exit", "layers": 1})
    found = answers(engine, temperature=temperature, frequency_penalty=0.0)
    plain = drafting_engine(shallow, "none")
    assert found == answers(plain, temperature=temperature, frequency_penalty=0.0)
    counted = engine.stats().drafts
    leaves = counted.tokens - sum(counted.accepted_at)
    assert counted.accepted_at
    assert counted.accepted_at[0] == counted.drafts
    assert leaves <= counted.drafts * 5
    assert engine.scheduler.steps < 0.6 * plain.scheduler.steps


def test_an_exit_of_zeros_is_the_plain_one(shallow: Path, tmp_path: Path) -> None:
    trained = drafting_engine(shallow, drafts(tmp_path, "early_exit", scale=0.0))
    plain = drafting_engine(shallow, {"method": "early_exit", "layers": 1})
    assert answers(trained) == answers(plain)
    assert trained.stats().drafts.accepted_at == plain.stats().drafts.accepted_at


def rows_after(
    engine: Engine, tokens: list[int], marks: Floats | None = None
) -> tuple[Floats, Ints]:
    """The last token's hidden state after the last layer, and the four likeliest tokens after
    each row, of a text computed in one step, with marks behind it."""
    view = engine.state.new_view()
    count = 0 if marks is None else len(marks)
    rows = len(tokens) + count
    assert engine.state.reserve(view, rows)
    cells, owner = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
    step = build_step(
        np.array(tokens + [0] * count, np.int32),
        cells,
        owner,
        engine.state.tables([view]),
        engine.state.page_tokens,
        wants_logits=cells,
        candidates=4,
    )
    step.wants_hidden = {1: np.array([len(tokens) - 1], np.int32)}
    if marks is not None:
        step.embeddings = marks
        step.embedding_of = np.array([-1] * len(tokens) + list(range(count)), np.int32)
    run = engine.executor.begin(step)
    engine.executor.run(run, 0, len(engine.model.program.ops))
    output = engine.executor.finish(run)
    engine.state.release(view)
    return output.hidden[1][0], output.candidates


def test_streams_are_told_how_the_right_row_stands(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was drafted and accepted: the row before the latest token."""
    told: list[tuple[list[int], Floats]] = []
    texts: dict[StandingStream, list[int]] = {}
    extend, saw = StandingStream.extend, StandingStream.saw

    def extended(stream: StandingStream, tokens: Ints) -> None:
        texts.setdefault(stream, []).extend(tokens.tolist())
        extend(stream, tokens)

    def seeing(stream: StandingStream, own: OwnRows, seen: Seen) -> None:
        told.append((list(texts[stream]), seen.hidden[1][0].copy()))
        saw(stream, own, seen)

    monkeypatch.setattr(StandingStream, "extend", extended)
    monkeypatch.setattr(StandingStream, "saw", seeing)
    answers(drafting_engine(target, drafts(tmp_path, "medusa", scale=0.05)))
    assert len(told) > 50
    reader = drafting_engine(target, "none")
    for text, hidden in told[::7]:
        np.testing.assert_array_equal(rows_after(reader, text)[0], hidden)


def test_marks_are_read_as_if_they_stood_behind_the_text(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[int], list[list[int]]]] = []
    texts: dict[GuessingStream, list[int]] = {}
    extend, saw = GuessingStream.extend, GuessingStream.saw

    def extended(stream: GuessingStream, tokens: Ints) -> None:
        texts.setdefault(stream, []).extend(tokens.tolist())
        extend(stream, tokens)

    def seeing(stream: GuessingStream, own: OwnRows, seen: Seen) -> None:
        told.append((list(texts[stream]), seen.candidates.tolist()))
        saw(stream, own, seen)

    monkeypatch.setattr(GuessingStream, "extend", extended)
    monkeypatch.setattr(GuessingStream, "saw", seeing)
    engine = drafting_engine(target, drafts(tmp_path, "prompt_tokens", count=MARKS))
    answers(engine)
    assert engine.stats().drafts.accepted  # so that marks behind guesses were used too
    assert len(told) > 50
    reader = drafting_engine(target, "none")
    for text, candidates in told[::7]:
        _, likely = rows_after(reader, text, engine.speculation.marks)
        assert likely[len(text) :][: len(candidates)].tolist() == candidates


def test_what_belongs_to_another_model_is_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hidden size 64"):
        drafting_engine(target, drafts(tmp_path / "wide", "medusa", hidden_size=64))
    other = drafts(tmp_path / "other", "prompt_tokens") | {"method": "medusa"}
    with pytest.raises(ConfigError, match="trained for the method 'prompt_tokens'"):
        drafting_engine(target, other)
    with pytest.raises(ConfigError, match=r"draft\.json"):
        drafting_engine(target, {"method": "medusa", "model": str(target)})
    with pytest.raises(ConfigError, match="ockham draft train"):
        drafting_engine(target, {"method": "medusa"})
    with pytest.raises(ConfigError, match="1 to 1 of them, got layers = 2"):
        drafting_engine(target, {"method": "early_exit", "layers": 2})
    with pytest.raises(ConfigError, match="either"):
        drafting_engine(target, {"method": "early_exit"})
    with pytest.raises(ConfigError, match="layers is a setting of the method early_exit"):
        drafting_engine(target, {"method": "copying", "layers": 1})


def test_one_that_costs_more_than_it_brings_is_left_alone(
    shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a drafter that pays: the account of both would stay open."""
    asked = 0
    propose = EarlyExit.propose_all

    def counted(self: EarlyExit, *arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return propose(self, *arguments)

    monkeypatch.setattr(EarlyExit, "propose_all", counted)
    wrong = drafts(tmp_path, "early_exit", scale=5.0)["model"]
    setting = {"method": "early_exit,copying", "model": wrong, "adaptive": True}
    engine = drafting_engine(shallow, setting, max_model_len=500)
    found = answers(engine, count=3, max_tokens=400, temperature=0.0)
    plain = drafting_engine(shallow, "none", max_model_len=500)
    assert found == answers(plain, count=3, max_tokens=400, temperature=0.0)
    assert 0 < asked < 0.5 * engine.scheduler.steps
