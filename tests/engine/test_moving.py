"""A request that moves to another engine goes on to the bit, in this process or another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.engine.moving import MovedRequest
from tests.helpers.tiny import tiny_llama, tiny_mistral

ROOT = Path(__file__).parents[2]
CHILD = """
import json, sys
import msgspec
from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
engine = Engine(msgspec.json.decode(sys.argv[1], type=EngineConfig))
engine.import_request(sys.stdin.buffer.read())
while engine.has_work:
    for delta in engine.step():
        print(msgspec.json.encode(delta).decode())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("moving"), tokenizer=True)


def config_of(checkpoint: Path, **settings: Any) -> EngineConfig:
    values = {"model": str(checkpoint), "max_model_len": 256, "max_num_batched_tokens": 32}
    values["speculative_config"] = "none"  # so that it is known how far a request is
    return EngineConfig(**{**values, **settings})


def ask(name: str = "a", tokens: int = 70, **params: Any) -> Request:
    values = {"temperature": 0.9, "top_p": 0.95, "seed": 3, "max_tokens": 40, "ignore_eos": True}
    prompt = np.random.default_rng(len(name)).integers(2, 500, tokens).tolist()
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**values, **params}),
    )


class Heard:
    """What was said of a request, by choice, wherever it was."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.texts: dict[int, str] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.prompt_logprobs: Any = None
        self.reasons: dict[int, tuple[Any, Any]] = {}
        self.bill: Ledger | None = None

    def add(self, delta: Delta) -> None:
        self.tokens.setdefault(delta.index, []).extend(delta.token_ids)
        self.texts[delta.index] = self.texts.get(delta.index, "") + delta.text
        self.logprobs.setdefault(delta.index, []).extend(delta.logprobs or [])
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        if delta.finish_reason is not None:
            self.reasons[delta.index] = delta.finish_reason, delta.stop_reason
        self.bill = delta.ledger or self.bill

    def said(self) -> tuple[Any, ...]:
        return self.tokens, self.texts, self.logprobs, self.prompt_logprobs, self.reasons


def run(engine: Engine, heard: Heard, steps: int | None = None) -> Heard:
    while engine.has_work and steps != 0:
        for delta in engine.step():
            heard.add(delta)
        steps = None if steps is None else steps - 1
    return heard


REQUESTS = {
    "sampled": ask(logprobs=2),
    "greedy": ask(temperature=0.0),
    "penalised": ask(repetition_penalty=1.3, frequency_penalty=0.4, bad_words=["the"]),
    "choices": ask(n=3, logprobs=1),
    "scored": ask(prompt_logprobs=1, max_tokens=5),
    "stopped": ask(stop=["zzzz", "e"], min_tokens=9),
}


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> tuple[Engine, Engine]:
    return Engine(config_of(checkpoint)), Engine(config_of(checkpoint))


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 10, 25])
@pytest.mark.parametrize("name", REQUESTS)
def test_it_goes_on_as_if_it_had_never_moved(
    engines: tuple[Engine, Engine], name: str, steps: int
) -> None:
    one, other = engines
    one.reuse.forget()
    one.add(REQUESTS[name])
    expected = run(one, Heard())
    one.reuse.forget()
    other.reuse.forget()
    one.add(REQUESTS[name])
    heard = run(one, Heard(), steps)
    if one.has_work:
        data = one.export_request("a")
        assert not one.has_work
        one.check_integrity()
        assert one.stats().pages_used == 0
        assert other.import_request(data) == "a"
        other.check_integrity()
        run(other, heard)
    assert heard.said() == expected.said()
    assert heard.bill is not None
    assert expected.bill is not None
    assert heard.bill.generated_tokens == expected.bill.generated_tokens
    assert heard.bill.prompt_tokens_computed == expected.bill.prompt_tokens_computed
    assert "preemption" not in heard.bill.wasted


def test_all_that_was_asked_moves_with_it(engines: tuple[Engine, Engine]) -> None:
    one, _ = engines
    for more in ({}, {"tenant": "another", "priority": -3}):
        asked = msgspec.structs.replace(
            ask(n=2), cache_salt="tenant", cache_hint="discard", patient=True, orderly=True, **more
        )
        one.add(asked)
        run(one, Heard(), 6)
        moved = msgspec.msgpack.decode(one.export_request("a"), type=MovedRequest)
        assert moved.request == asked


@pytest.mark.parametrize("kind", ["full", "window"])
def test_it_goes_on_in_another_process(tmp_path: Path, kind: str) -> None:
    make = {"full": tiny_llama, "window": lambda path, **k: tiny_mistral(path, window=24, **k)}
    checkpoint = make[kind](tmp_path, vocab_size=500)
    config = config_of(checkpoint, skip_tokenizer_init=True)
    engine = Engine(config)
    request = msgspec.structs.replace(ask(n=2, logprobs=2), detokenize=False)
    engine.add(request)
    expected = run(engine, Heard())
    engine.reuse.forget()
    engine.add(request)
    heard = run(engine, Heard(), 12)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, msgspec.json.encode(config).decode()],
        input=engine.export_request("a"),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    for line in child.stdout.splitlines():
        heard.add(msgspec.json.decode(line, type=Delta))
    assert heard.said() == expected.said()
    assert heard.bill is not None
    assert heard.bill.prompt_tokens_computed == 70
    assert "preemption" not in heard.bill.wasted


def test_without_room_for_its_state_it_computes_again(checkpoint: Path) -> None:
    one = Engine(config_of(checkpoint))
    page_bytes = sum(layout.page_bytes for layout in one.model.layouts)
    small = Engine(config_of(checkpoint, kv_cache_memory_bytes=16 * page_bytes))
    one.add(ask(logprobs=2))
    expected = run(one, Heard())
    one.add(ask(logprobs=2))
    heard = run(one, Heard(), 20)
    small.add(ask("other", tokens=150))
    run(small, Heard(), 10)
    small.import_request(one.export_request("a"))
    others = Heard()
    while small.has_work:
        for delta in small.step():
            (heard if delta.request_id == "a" else others).add(delta)
        small.check_integrity()
    assert heard.said() == expected.said()
    assert heard.bill is not None
    assert heard.bill.wasted["preemption"].tokens > 0


def test_with_no_seat_it_waits_with_its_state(checkpoint: Path) -> None:
    one, full = (Engine(config_of(checkpoint, max_num_seqs=1)) for _ in range(2))
    one.add(ask(logprobs=2))
    expected = run(one, Heard())
    one.reuse.forget()
    one.add(ask(logprobs=2))
    heard = run(one, Heard(), 20)
    full.add(ask("other", tokens=20))
    run(full, Heard(), 5)
    full.import_request(one.export_request("a"))
    assert (full.stats().running, full.stats().waiting) == (1, 1)
    while full.has_work:
        for delta in full.step():
            if delta.request_id == "a":
                heard.add(delta)
    assert heard.said() == expected.said()
    assert heard.bill is not None
    assert "preemption" not in heard.bill.wasted


def test_what_cannot_go_on_here_is_refused_and_changes_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    one = Engine(config_of(checkpoint))
    with pytest.raises(InvalidRequest, match="no running request 'a' to export"):
        one.export_request("a")
    one.add(ask())
    run(one, Heard(), 10)
    data = one.export_request("a")
    other = Engine(config_of(tiny_llama(tmp_path, tokenizer=True, seed=1)))
    with pytest.raises(InvalidRequest, match="would not go on with the same bits"):
        other.import_request(data)
    with pytest.raises(InvalidRequest, match="may grow to 110 tokens, and the context here is 100"):
        Engine(config_of(checkpoint, max_model_len=100)).import_request(data)
    with pytest.raises(InvalidRequest, match="no tokenizer was loaded"):
        Engine(config_of(checkpoint, skip_tokenizer_init=True)).import_request(data)
    for damaged in (b"", data[:-1], data[:50], b"\x93\x01\x02\x03", json.dumps([1]).encode()):
        with pytest.raises(InvalidRequest, match="no exported request"):
            one.import_request(damaged)
    moved = msgspec.msgpack.decode(data, type=MovedRequest)
    assert moved.choices[0].state is not None
    for field, value in (("length", 10_000), ("data", [b""])):
        broken = msgspec.msgpack.decode(data, type=MovedRequest)
        setattr(broken.choices[0].state, field, value)
        with pytest.raises(InvalidRequest, match="no exported request"):
            one.import_request(msgspec.msgpack.encode(broken))
    broken = msgspec.msgpack.decode(data, type=MovedRequest)
    broken.version = 99
    with pytest.raises(InvalidRequest, match="exported in version 99"):
        one.import_request(msgspec.msgpack.encode(broken))
    assert not one.has_work
    assert one.stats().pages_used == 0
    one.import_request(data)
    with pytest.raises(InvalidRequest, match="already running"):
        one.import_request(data)
    run(one, Heard())
