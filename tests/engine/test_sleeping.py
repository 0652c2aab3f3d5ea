"""Pins that outlive an engine: computed anew while nobody asks for anything, never in the way."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.core.outputs import RequestOutput
from ockham.engine.engine import Engine
from ockham.engine.messages import Pin, Request, Unpin
from ockham.engine.sleeping import ROWS, PinFile, Sleeper
from ockham.lab.running import drive
from tests.helpers import serving
from tests.helpers.serving import ask
from tests.helpers.tiny import tiny_llama

TEXT = [(11 * i) % 97 for i in range(300)]
OTHER = [(7 * i) % 97 for i in range(200)]
make_engine = partial(serving.make_engine, max_model_len=400)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sleeping"))


def pinned(checkpoint: Path, file: Path, *pins: Pin) -> Engine:
    """An engine that has pinned these, which the file holds."""
    engine = make_engine(checkpoint)
    Sleeper(engine, PinFile(file))
    for pin in pins:
        answered(engine, ask("pin", pin.prompt_token_ids, pin.cache_salt, max_tokens=1))
        engine.cache.pin(pin)
    return engine


def answered(engine: Engine, request: Request) -> tuple[list[int], Ledger]:
    outputs: list[RequestOutput] = []
    drive(engine, [request], outputs.append)
    return outputs[0].outputs[0].token_ids, outputs[0].ledger


def sleep(sleeper: Sleeper) -> int:
    """Work until nothing is left; how many steps that took."""
    steps = 0
    while sleeper.engine.has_work or sleeper.wake():
        assert not sleeper.after(sleeper.engine.step())
        steps += 1
    return steps


def test_a_pin_is_there_again_after_a_restart_and_some_idle_time(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pins.json"
    pins = [Pin("text", TEXT, "mine"), Pin("other", OTHER), Pin("short", TEXT[:9], lasting=False)]
    asked = ask("a", [*TEXT, 3, 4], "mine")
    expected, _ = answered(pinned(checkpoint, file, *pins), asked)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    engine = make_engine(checkpoint)
    sleeper = Sleeper(engine, PinFile(file))
    assert sleeper.left == 2
    assert not engine.has_work
    assert sleep(sleeper) >= len(TEXT) // ROWS
    assert sleeper.left == 0
    assert engine.cache.pins("mine") == {"text": len(TEXT)}
    assert engine.cache.pins() == {"other": len(OTHER)}
    found, bill = answered(engine, asked)
    assert found == expected
    assert bill.prompt_tokens_reused >= len(TEXT) - 1
    engine.check_integrity()


def test_it_gives_way_at_once_and_goes_on_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    """Also for a request of the same text, which takes over what is there."""
    file = tmp_path / "pins.json"
    pinned(checkpoint, file, Pin("text", TEXT))
    engine = make_engine(checkpoint)
    sleeper = Sleeper(engine, PinFile(file))
    assert sleeper.wake()
    before = engine.total.rows
    sleeper.after(engine.step())
    sleeper.after(engine.step())
    done = engine.total.rows - before
    assert 0 < done <= 2 * ROWS
    sleeper.give_way()
    assert not sleeper.running
    assert not engine.has_work
    assert sleeper.left == 1
    alone, _ = answered(make_engine(checkpoint), ask("a", OTHER))
    assert answered(engine, ask("a", OTHER))[0] == alone
    rows = engine.total.rows
    sleep(sleeper)
    assert engine.total.rows - rows <= len(TEXT) - done + 2 * engine.state.page_tokens
    assert engine.cache.pins() == {"text": len(TEXT)}
    engine.check_integrity()


def test_what_is_unpinned_is_forgotten_and_what_is_to_come_is_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pins.json"
    engine = pinned(checkpoint, file, Pin("text", TEXT), Pin("other", OTHER))
    numerics = engine.model.numerics_id
    engine.cache.unpin(Unpin("text"))
    assert [pin.name for pin in PinFile(file).read(numerics)] == ["other"]
    again = make_engine(checkpoint)
    Sleeper(again, PinFile(file))  # has not slept yet
    answered(again, ask("pin", TEXT, max_tokens=1))
    again.cache.pin(Pin("new", TEXT))
    assert {pin.name for pin in PinFile(file).read(numerics)} == {"new", "other"}


def test_a_pin_that_does_not_fit_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "pins.json"
    numerics = pinned(checkpoint, file).model.numerics_id
    PinFile(file).write([Pin("long", TEXT * 2), Pin("text", TEXT)], numerics)
    sleeper = Sleeper(make_engine(checkpoint), PinFile(file))
    sleep(sleeper)
    assert sleeper.engine.cache.pins() == {"text": len(TEXT)}


def test_without_prefix_caching_it_does_nothing_in_vain_twice(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pins.json"
    pinned(checkpoint, file, Pin("text", TEXT))
    sleeper = Sleeper(make_engine(checkpoint, reuse="none"), PinFile(file))
    sleep(sleeper)
    assert sleeper.left == 0
    assert sleeper.engine.cache.pins() == {}


def test_another_models_pins_are_not_restored_and_other_files_not_replaced(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pins.json"
    PinFile(file).write([Pin("text", TEXT)], "another")
    assert Sleeper(make_engine(checkpoint), PinFile(file)).left == 0
    pinned(checkpoint, file, Pin("own", OTHER))
    assert [pin.name for pin in PinFile(file).read("another")] == ["text"]
    with pytest.raises(ConfigError, match="there is no directory"):
        PinFile(tmp_path / "no" / "pins.json")
    for text in ("", "[]", '{"kind": "ockham pins 1"', "\xff", '{"kind": "mine"}'):
        file.write_text(text, "latin-1")
        with pytest.raises(ConfigError, match="name another, or remove it"):
            Sleeper(make_engine(checkpoint), PinFile(file))
    with pytest.raises(ConfigError, match="it is no file of pins"):
        Sleeper(make_engine(checkpoint), PinFile(tmp_path))


def test_an_llm_sleeps_when_it_is_told_to(checkpoint: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "pins.json")
    settings = {"skip_tokenizer_init": True, "max_model_len": 400, "pins": file}
    with LLM(str(checkpoint), **settings) as llm:  # type: ignore[arg-type]
        llm.pin({"prompt_token_ids": TEXT}, "text")
        assert llm.sleep() == 0
    with LLM(str(checkpoint), **settings) as llm:  # type: ignore[arg-type]
        assert llm.sleep(0.0) == 1
        assert llm.pins() == {}
        params = SamplingParams(max_tokens=2, temperature=0.0)
        llm.generate({"prompt_token_ids": OTHER}, params)
        assert llm.sleep() == 0
        assert llm.pins() == {"text": len(TEXT)}
