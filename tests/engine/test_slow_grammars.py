"""A grammar that is slow, hostile or ambiguous holds nobody up but its own request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.engine.engine import Engine
from ockham.engine.idling import idle_of
from ockham.engine.intake import Held, Intake
from ockham.engine.messages import Delta, Refused, Request
from ockham.engine.structured import grammar as grammars
from ockham.engine.structured.compiler import Grammars
from tests.helpers.grammars import GRAMMARS, SCHEMA
from tests.helpers.tiny import tiny_llama

MOST_GAP_S = 0.5
"""Between two tokens of another request; on a quiet machine it is a hundredth of that. On a busy
one it is `NOISE` times what it is without any grammar, and two longer ones are let pass."""
NOISE = 5.0
HEAVY = (
    "start: T\n"
    "T: /(.|\\n)*a(.|\\n){16}/ & /(.|\\n)*b(.|\\n){15}/ & ~/(.|\\n)*c(.|\\n){14}/ & ~/[0-9]%d/"
)
"""Takes 5 s of CPU time and more to compile, and a second for its first mask."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("slow"), tokenizer=True)


def make(checkpoint: Path, **settings: Any) -> Engine:
    values = {"model": str(checkpoint), "max_model_len": 512, "max_num_seqs": 300}
    return Engine(EngineConfig(**{**values, **settings}))


def ask(name: str, structured: StructuredOutputsParams | None = None, **params: Any) -> Request:
    values = {"temperature": 0.8, "seed": 3, "max_tokens": 60, "structured_outputs": structured}
    return Request(
        request_id=name,
        prompt_token_ids=np.random.default_rng(1).integers(300, 900, 12).tolist(),
        params=SamplingParams(**{**values, **params}),
    )


class Served:
    """An engine with its intake, as its process runs them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held = Held()
        self.intake = Intake(idle_of(engine), self.held)
        self.said: dict[str, list[Delta | Refused]] = {}
        self.rounds_s: list[float] = []
        self.most_s = 0.0
        self.count = 0

    def take(self, request: Request) -> None:
        self._hear(self.intake.take(request))

    def run(self, until: Callable[[], bool], most_s: float = 120.0) -> None:
        """Go on until something holds, and note the longest round."""
        end_s = time.monotonic() + most_s
        while not until():
            assert time.monotonic() < end_s
            began_s = time.monotonic()
            self._hear(self.intake.ready())
            if self.engine.has_work:
                self._hear(self.engine.step())
            else:
                time.sleep(0.005)
            self.rounds_s.append(time.monotonic() - began_s)

    def _hear(self, messages: Any) -> None:
        for message in messages:
            self.said.setdefault(message.request_id, []).append(message)
            if isinstance(message, Delta):
                self.held.update_from([message])

    @property
    def gap_s(self) -> float:
        return sorted(self.rounds_s)[-3]

    def is_over(self, name: str) -> bool:
        last = self.said.get(name, [None])[-1]
        return isinstance(last, Refused) or (isinstance(last, Delta) and last.finished)

    def reason(self, name: str) -> str:
        last = self.said[name][-1]
        return last.message if isinstance(last, Refused) else str(last.stop_reason)

    def refill(self) -> None:
        """Keep another's request going."""
        while sum(name.startswith("other") for name in self.held) < 2:
            self.count += 1
            self.take(ask(f"other-{self.count}", ignore_eos=True, max_tokens=40))


@pytest.fixture
def served(checkpoint: Path) -> Served:
    engine = make(checkpoint)
    served = Served(engine)
    # The first grammar of an engine is the one that reads the vocabulary.
    served.take(ask("first", StructuredOutputsParams(choice=["yes"])))
    served.run(lambda: served.is_over("first"))
    until_s = time.monotonic() + 1.0
    served.rounds_s.clear()

    def quiet() -> bool:
        served.refill()
        return time.monotonic() > until_s

    served.run(quiet)
    served.most_s = max(MOST_GAP_S, NOISE * max(served.rounds_s))
    served.rounds_s.clear()
    return served


def test_grammars_that_compile_slowly_hold_no_other_request_up(served: Served) -> None:
    """Nor when they are sent again: that they are refused is remembered."""
    engine = served.engine
    described = engine.grammars._describe
    engine.grammars.close()
    engine.grammars = Grammars(described, engine.vocabulary, compile_s=0.5)
    names = [f"heavy-{i}" for i in range(8)]

    def over() -> bool:
        served.refill()
        return all(served.is_over(name) for name in names)

    for again in range(2):
        for i, name in enumerate(names):
            served.said.pop(name, None)
            served.take(ask(name, StructuredOutputsParams(grammar=HEAVY % i)))
        if again:
            assert all(served.is_over(name) for name in names), "at once"
        served.run(over)
        assert all("make it simpler" in served.reason(name) for name in names)
        assert all(isinstance(served.said[name][-1], Refused) for name in names)
    assert served.gap_s < served.most_s


def test_many_different_schemas_in_flight_hold_no_other_request_up(served: Served) -> None:
    compiled = 0
    compile_ = served.engine.grammars._compile

    def count(*args: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return compile_(*args)

    served.engine.grammars._compile = count  # type: ignore[method-assign]
    names = [f"schema-{i}" for i in range(200)]
    for i, name in enumerate(names):
        schema = SCHEMA | {"properties": {**SCHEMA["properties"], f"extra{i}": {"type": "string"}}}
        asked = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
        served.take(ask(name, asked, max_tokens=8))

    def over() -> bool:
        served.refill()
        return all(served.is_over(name) for name in names)

    served.run(over)
    assert compiled == len(names), "each once, though more are in flight than are kept"
    assert all(isinstance(served.said[name][-1], Delta) for name in names)
    assert served.gap_s < served.most_s


def test_a_text_that_can_be_read_in_too_many_ways_ends_its_own_request(served: Served) -> None:
    asked = StructuredOutputsParams(grammar='start: a\na: a a a | a a | "x" | "y"')
    for i in range(2):
        served.take(ask(f"ambiguous-{i}", asked, max_tokens=250, ignore_eos=True, seed=i))

    def over() -> bool:
        served.refill()
        return all(served.is_over(f"ambiguous-{i}") for i in range(2))

    served.run(over)
    assert served.gap_s < served.most_s
    for i in range(2):
        deltas = [d for d in served.said[f"ambiguous-{i}"] if isinstance(d, Delta)]
        assert deltas[-1].finish_reason in ("error", "length")
        if deltas[-1].finish_reason == "error":
            assert "cannot be followed any further" in str(deltas[-1].stop_reason)


def test_a_mask_that_takes_too_long_ends_its_request_and_is_refused_from_then_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = "start: /[a-c]{3}/ T\nT: " + HEAVY.splitlines()[1].partition("T: ")[2] % 7
    monkeypatch.setattr(grammars, "LATE_S", 0.2)
    asked = StructuredOutputsParams(grammar=hard.replace("16", "14").replace("15", "13"))
    served.take(ask("hard", asked))

    def over() -> bool:
        served.refill()
        return served.is_over("hard")

    served.run(over)
    assert served.gap_s < served.most_s
    last = served.said["hard"][-1]
    assert isinstance(last, Refused) or last.finish_reason == "error"


def everything(engine: Engine, preempting: bool = False) -> list[tuple[Any, ...]]:
    """What comes of all kinds of requests with grammars."""
    found = []
    for number, asked in enumerate((*GRAMMARS, StructuredOutputsParams(regex="(ab|c)+"))):
        for params in (
            {"n": 3},
            {"temperature": 0.0},
            {"max_tokens": 7},
            {"logprobs": 1, "min_tokens": 4},
            {"ignore_eos": True, "stop": ["ab"]},
        ):
            engine.take(ask(f"{number}", asked, **{"max_tokens": 30, **params}))
            tokens: dict[int, list[int]] = {}
            ends: dict[int, tuple[Any, ...]] = {}
            step = 0
            while engine.has_work:
                step += 1
                if preempting and step % 4 == 0 and engine.scheduler.running:
                    engine.scheduler.preempt(engine.scheduler.running[0])
                for delta in engine.step():
                    tokens.setdefault(delta.index, []).extend(delta.token_ids)
                    if delta.finish_reason is not None:
                        ends[delta.index] = delta.finish_reason, delta.stop_reason
            found.append((tokens, ends))
    return found


@pytest.mark.parametrize("settings", [{"speculative_config": "none"}, {}])
def test_a_slow_grammar_gives_the_same_answers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    quick = everything(make(checkpoint, **settings))
    monkeypatch.setattr(grammars, "QUICK_S", -1.0)
    slow = make(checkpoint, **settings)
    assert everything(slow) == quick
    assert everything(slow, preempting=True) == quick
    assert all(grammar.slow for grammar in slow.grammars._kept.values())


def test_a_suspect_grammar_gives_the_same_answers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = everything(make(checkpoint))
    monkeypatch.setattr("ockham.engine.structured.compiler.is_suspect", lambda asked: True)
    monkeypatch.setattr(grammars, "QUICK_S", 10.0)
    monkeypatch.setattr(grammars, "CONSUME_S", 10.0)
    watched = make(checkpoint)
    assert everything(watched) == quick
    assert all(g.watched and not g.slow for g in watched.grammars._kept.values())
