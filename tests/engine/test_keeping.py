"""Sequences of which not all cells stay, by a Keep that looks at attention, head by head.

It exists here only. Whatever the batch, the chunks, the drafts and preemption were, each sequence
says what it says alone; and requests beside it say what they always say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from ockham.core import registry
from ockham.core.arrays import Ints
from ockham.core.asks import Ask
from ockham.core.errors import InvalidRequest
from ockham.core.seams import NOTHING, Keeping, KeptText, OwnRows, Seen, Wants
from ockham.core.speculative import parse
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import ask, complete, drain, make_engine, tokens_of
from tests.helpers.tiny import tiny_alternating, tiny_llama

EVERY, LEFT = 12, 6
LENGTHS = (3, 30, 61, 12, 90)


class ToyAsk(Ask, kw_only=True, frozen=True):
    """Nothing to set."""


class Watching(Keeping):
    """Of every `EVERY` tokens' cells, each head keeps the `LEFT` that the last row looked at most,
    in the first layer."""

    name = "toy"
    observes = True

    def __init__(self) -> None:
        self._scores: np.ndarray | None = None

    def border(self, tokens: int) -> int:
        return (tokens // EVERY + 1) * EVERY

    def most_cells(self, tokens: int) -> int:
        return min(tokens, LEFT + EVERY)

    def wants(self, own: OwnRows) -> Wants:
        last = np.flatnonzero((own.places + 1) % EVERY == 0).astype(np.int32)
        return Wants(scores=(0,), rows=last) if len(last) else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self._scores = np.array(seen.scores[0][-1])

    def keep(self, group: int, places: Ints) -> Ints:
        assert self._scores is not None, "the row before a border is always seen"
        assert self._scores.shape[-1] == places.shape[-1]
        order = np.argsort(-self._scores, axis=-1, kind="stable")[..., :LEFT]
        return np.sort(order, axis=-1).astype(np.int32)

    def fork(self, tokens: int) -> Keeping | None:
        return None

    def fresh(self) -> Keeping:
        return Watching()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = registry._modules
    monkeypatch.setattr(
        registry, "_modules", lambda seam: modules(seam) | ({"toy"} if seam == "keep" else set())
    )

    @registry.register("keep", "toy", exact=False)
    class Toy:
        """A toy."""

        name: ClassVar[str] = "toy"
        Ask: ClassVar[type[Ask]] = ToyAsk

        def open(self, ask: Ask, text: KeptText) -> Keeping:
            return Watching()

    yield
    del registry._techniques["keep", "toy"]


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory) if request.param == "full" else tiny_alternating(directory)


def prompt(number: int) -> list[int]:
    return np.random.default_rng(number).integers(2, 97, LENGTHS[number]).tolist()


def wanted(kept: bool = True, **params: Any) -> list[Request]:
    asks = {"keep/toy": True} if kept else {}
    return [
        ask(f"{number}-{kept}", prompt(number), asks=asks, seed=number, max_tokens=40, **params)
        for number in range(len(LENGTHS))
    ]


def engine_of(checkpoint: Path, **settings: Any) -> Engine:
    return make_engine(checkpoint, **{"block_size": 4, "speculative_config": "none", **settings})


def alone(checkpoint: Path, requests: list[Request]) -> dict[Any, list[int]]:
    """What requests say one after the other, three rows a step, with nothing reused."""
    engine = engine_of(checkpoint, max_num_batched_tokens=3, max_num_seqs=3, reuse="none")
    said: dict[Any, list[int]] = {}
    for request in requests:
        said |= complete(engine, [msgspec.structs.replace(request)])
    return said


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [7, 64, 256])
def test_no_batch_and_no_chunk_changes_a_token(
    checkpoint: Path, temperature: float, budget: int
) -> None:
    requests = [*wanted(temperature=temperature), *wanted(False, temperature=temperature)]
    expected = alone(checkpoint, requests)
    engine = engine_of(checkpoint, max_num_batched_tokens=budget)
    assert complete(engine, requests) == expected
    again = [msgspec.structs.replace(r, request_id=f"{r.request_id} again") for r in requests]
    said = complete(engine, again)
    assert {(name.removesuffix(" again"), i): t for (name, i), t in said.items()} == expected


def test_cells_are_dropped_and_it_matters(checkpoint: Path) -> None:
    engine = engine_of(checkpoint, reuse="none")
    said = complete(engine, [*wanted(), *wanted(False)])
    assert any(said[f"{n}-True", 0] != said[f"{n}-False", 0] for n in range(len(LENGTHS)))
    saved = engine.total.saved["toy"]
    assert saved.flops > 0
    assert saved.bytes > 0


def test_preemption_changes_no_token(checkpoint: Path) -> None:
    requests = wanted(temperature=0.8)
    expected = alone(checkpoint, requests)
    engine = engine_of(checkpoint, max_num_batched_tokens=32)
    for request in requests:
        engine.add(request)
    deltas, steps = [], 0
    while engine.has_work:
        deltas += engine.step()
        steps += 1
        running = engine.scheduler.running
        if steps % 9 == 0 and steps < 80 and running:
            engine.scheduler.preempt(running[steps % len(running)])
    assert engine.scheduler.preemptions > 3
    assert tokens_of(deltas) == expected


@pytest.mark.parametrize("right", [0.5, 1.0])
def test_choices_and_drafts_change_no_token(checkpoint: Path, right: float) -> None:
    requests = wanted(temperature=0.8, n=3)
    expected = alone(checkpoint, requests)
    texts = [prompt(int(name[0])) + tokens for (name, _), tokens in expected.items()]
    engine = engine_of(checkpoint, max_num_batched_tokens=64)
    engine.speculation = foretelling(97, texts, most=5, seed=1, right=right, branches=2)
    assert complete(engine, requests) == expected
    engine.speculation = engine.make_speculation(parse("none"))


def test_a_request_moves_and_says_the_same(checkpoint: Path) -> None:
    requests = wanted(temperature=0.8)
    expected = alone(checkpoint, requests)
    here, there = engine_of(checkpoint), engine_of(checkpoint)
    for request in requests:
        here.add(request)
    deltas = [delta for _ in range(25) for delta in here.step()]
    for name in {s.request_id for s in here.scheduler.running}:
        there.import_request(here.export_request(name))
    deltas += drain(here) + drain(there)
    assert tokens_of(deltas) == expected


def test_a_pool_that_could_not_hold_a_text_whole_serves_it(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    page_bytes = engine_of(checkpoint).state.groups[0].page_bytes
    engine = engine_of(checkpoint, keep="toy", kv_cache_memory_bytes=10 * page_bytes)
    assert engine.max_model_len == 256
    long = ask("long", prompt(2), max_tokens=150)
    engine.add(long)
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats().pages_used)
    assert most <= -(-(LEFT + EVERY) // 4)
    with pytest.raises(InvalidRequest, match="the pool holds 40"):
        engine.add(ask("whole", prompt(2), asks={"keep/all": True}, max_tokens=150))


def test_it_does_not_go_with_approximate_reuse(tmp_path: Path) -> None:
    engine = engine_of(tiny_llama(tmp_path), reuse="prefix,edit")
    with pytest.raises(InvalidRequest, match="toy drops cells"):
        engine.add(ask("both", prompt(1), asks={"keep/toy": True, "reuse/edit": True}))
