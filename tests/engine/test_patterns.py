"""Patterns of attention in an engine: what their rows visit, what that saves, and who shares it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from ockham.core import registry
from ockham.core.arrays import Ints
from ockham.core.asks import Ask
from ockham.core.cost import ATTENTION
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.seams import AttentionGroup, OwnRows, Seen, SequencePattern, Wants
from ockham.core.visits import EVERY, BlockVisits
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta
from tests.helpers import serving
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY = 97
LONGEST = 400
ask = partial(serving.ask, max_tokens=90, seed=7)
TIMES = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0}


class ToyAsk(Ask, kw_only=True, frozen=True):
    seed: int = 0
    kind: str = "fixed"


class Toy(SequencePattern):
    """Head 0 of each layer sees all, the others the query block and any of those before it."""

    def __init__(self, seed: int, groups: Sequence[AttentionGroup]) -> None:
        self._seed, self._groups = seed, groups

    def visits(self, group: int, block: int) -> BlockVisits | None:
        shape = len(self._groups[group].layers), self._groups[group].kv_heads
        chosen = np.random.default_rng([self._seed, group, block]).random(block + 1) < 0.4
        of: Ints = np.zeros(shape, np.int32)
        of[:, 0] = EVERY
        chosen[block] = True
        return BlockVisits((np.flatnonzero(chosen).astype(np.int32),), of)


class Asked(Toy):
    """The same, asked anew in every step, which watches what its rows look at."""

    fixed: ClassVar[bool] = False
    observes: ClassVar[bool] = True
    watched: ClassVar[list[float]] = []

    def wants(self, own: OwnRows) -> Wants:
        return Wants(scores=(1,))

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self.watched += [float(scores.sum()) for scores in seen.scores[1]]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = registry._modules
    monkeypatch.setattr(
        registry, "_modules", lambda seam: modules(seam) | ({"toy"} & {"toy" * (seam == "pattern")})
    )

    @registry.register("pattern", "toy", exact=False)
    class Toys:
        """A toy."""

        shares = True
        Ask: ClassVar[type[Ask]] = ToyAsk

        def open(self, ask: ToyAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
            if ask.seed < 0 or groups[0].kv_heads < 2:
                raise InvalidRequest(f"the toy has no seed {ask.seed}.")
            return (Toy if ask.kind == "fixed" else Asked)(ask.seed, groups)

    Asked.watched.clear()
    yield
    del registry._techniques["pattern", "toy"]


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Path:
    directory: Path = tmp_path_factory.mktemp("tiny")
    if request.param == "full":
        return tiny_llama(directory)
    return tiny_mistral(directory, window=150)


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "block_size": 8, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, rng.integers(20, 300)).tolist() for _ in range(count)]


def toys(seed: int = 0, kind: str = "fixed") -> dict[str, Any]:
    return {"pattern/toy": {"seed": seed, "kind": kind}}


def load(engine: Engine, asks: Callable[[int], dict[str, Any]], **params: Any) -> None:
    for number, prompt in enumerate(prompts(6)):
        asked = {"temperature": 0.8 * (number % 2), "max_tokens": 40 + 10 * number, **params}
        engine.add(ask(str(number), prompt, asks=asks(number), **asked))


def some(number: int) -> dict[str, Any]:
    """Every third request asks for nothing, the others for two different patterns."""
    return toys(number % 3) if number % 3 else {}


def alone(checkpoint: Path, asks: Callable[[int], dict[str, Any]]) -> dict[Any, list[int]]:
    """What each request of a load says with nothing beside it, in one chunk."""
    engine = make_engine(checkpoint, reuse="none", max_num_batched_tokens=LONGEST, threads=1)
    found: dict[Any, list[int]] = {}
    for number, prompt in enumerate(prompts(6)):
        asked = {"temperature": 0.8 * (number % 2), "max_tokens": 40 + 10 * number}
        engine.add(ask(str(number), prompt, asks=asks(number), **asked))
        found |= tokens_of(drain(engine))
    return found


def timeless(ledger: Ledger | None) -> Ledger | None:
    return None if ledger is None else msgspec.structs.replace(ledger, **TIMES)


def test_company_chunks_and_preemption_change_no_token(checkpoint: Path) -> None:
    expected = alone(checkpoint, some)
    plain = alone(checkpoint, lambda number: {})
    assert any(expected[key] != plain[key] for key in plain), "a pattern changes something"
    assert all(expected[str(n), 0] == plain[str(n), 0] for n in (0, 3)), "who asks for nothing"
    for settings in ({}, {"max_num_batched_tokens": 17}, {"reuse": "none", "max_num_seqs": 3}):
        engine = make_engine(checkpoint, **settings)
        load(engine, some)
        deltas: list[Delta] = []
        for step in range(400):
            if step % 37 == 30 and engine.scheduler.running:
                engine.scheduler.preempt(engine.scheduler.running[-1])
            deltas += engine.step()
        assert tokens_of(deltas + drain(engine)) == expected


def test_drafts_change_no_token(checkpoint: Path) -> None:
    expected = alone(checkpoint, some)
    texts = [[*p, *expected[str(n), 0]] for n, p in enumerate(prompts(6))]
    engine = make_engine(checkpoint)
    engine.speculation = foretelling(VOCABULARY, texts, most=9, seed=1, right=0.8, branches=3)
    load(engine, some)
    assert tokens_of(drain(engine)) == expected
    assert engine.speculation.counters.accepted > 50


@pytest.mark.parametrize("kind", ["fixed", "asked"])
def test_the_kept_decoding_says_and_books_what_the_plain_path_does(
    checkpoint: Path, kind: str
) -> None:
    kept, plain = make_engine(checkpoint), make_engine(checkpoint)
    plain.attach(next(iter(plain.model.program.breakpoints)), lambda run: None)
    for engine in (kept, plain):
        load(engine, lambda number: toys(number, kind) if number else {})
    steps = 0
    while kept.has_work:
        deltas, expected = kept.step(), plain.step()
        for delta in (*deltas, *expected):
            delta.ledger = timeless(delta.ledger)
        assert deltas == expected
        assert timeless(kept.total) == timeless(plain.total)
        steps += kept.runner.decoding is not None
    assert steps > 60
    assert kept.total.saved["toy"].flops > 0
    if kind == "asked":
        assert len(Asked.watched) > 100
        np.testing.assert_allclose(Asked.watched, 4, rtol=1e-4)  # one of each query head


def test_what_is_left_out_is_booked_as_saved(checkpoint: Path) -> None:
    """The rows of a request cost what they cost without a pattern, less what it saved."""
    ledgers = []
    for asks in (lambda number: {}, toys):
        engine = make_engine(checkpoint, reuse="none", max_num_batched_tokens=70)
        load(engine, asks, n=1)
        deltas = drain(engine)
        of_requests = [delta.ledger for delta in deltas if delta.ledger is not None]
        total = Ledger()
        for ledger in of_requests:
            total.add(ledger)
        assert timeless(total) == timeless(engine.total), "the shares add up"
        ledgers.append(total)
    full, own = ledgers
    saved = own.saved.pop("toy")
    assert own.rows == full.rows
    assert saved.flops > 0.02 * full.flops
    assert saved.tokens == 0
    assert own.flops + saved.flops == full.flops
    assert own.state_read_bytes + saved.bytes == full.state_read_bytes
    assert own.state_written_bytes == full.state_written_bytes


def test_requests_that_ask_the_same_share_prefixes(checkpoint: Path) -> None:
    engine, prompt = make_engine(checkpoint), prompts(1)[0]
    computed, said = [], []
    for name, asks in (("a", toys()), ("b", toys()), ("c", {}), ("d", toys(1)), ("e", {})):
        before = engine.total.prompt_tokens_computed
        engine.add(ask(name, prompt, asks=asks))
        said.append(tokens_of(drain(engine))[name, 0])
        computed.append(engine.total.prompt_tokens_computed - before)
    whole = len(prompt)
    assert computed == [whole, 1, whole, whole, 1]
    assert said[0] == said[1]
    assert said[2] == said[4]


def test_choices_and_moved_requests_keep_their_pattern(checkpoint: Path) -> None:
    def forked() -> Engine:
        engine = make_engine(checkpoint)
        engine.add(ask("a", prompts(1)[0], asks=toys(), n=3, temperature=1.0))
        return engine

    expected = tokens_of(drain(forked()))
    here, there = forked(), make_engine(checkpoint, max_num_batched_tokens=11)
    deltas: list[Delta] = []
    for _ in range(40):
        deltas += here.step()
    assert there.import_request(here.export_request("a")) == "a"
    assert tokens_of(deltas + drain(there)) == expected


def test_a_setting_is_what_requests_get_that_ask_for_nothing(checkpoint: Path) -> None:
    prompt = prompts(1)[0]
    asked, plain = make_engine(checkpoint), make_engine(checkpoint, attention_pattern="toy")
    said = []
    for engine, asks in (
        (asked, toys()),
        (plain, {}),
        (asked, {}),
        (plain, {"pattern/full": True}),
    ):
        engine.add(ask("a", prompt, asks=asks))
        said.append(tokens_of(drain(engine))["a", 0])
    assert said[0] == said[1] != said[2] == said[3]


def test_a_pattern_is_opened_once_for_a_request(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, opened = make_engine(checkpoint), []
    technique = engine.techniques.of(ask("a", [5], asks=toys()), "pattern").technique  # type: ignore[union-attr]
    whole = type(technique).open

    def counted(self: Any, asked: Any, groups: Any) -> Any:
        opened.append(asked)
        return whole(self, asked, groups)

    monkeypatch.setattr(type(technique), "open", counted)
    engine.add(ask("a", prompts(1)[0], asks=toys()))
    assert len(opened) == 1


def test_of_layers_that_do_not_attend_a_pattern_says_nothing(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    request = ask("a", [5, 6], asks=toys(kind="asked"))
    opened = engine.patterns.open(request, frozenset({(0, ATTENTION)}))
    assert opened is not None
    for pattern in (opened.of, opened.fork().of):
        visits = [pattern.visits(group, 9) for group in range(len(engine.state.groups))]
        of = {
            layer: each.of[index].tolist()
            for layout, each in zip(engine.state.groups, visits, strict=True)
            for index, layer in enumerate(layout.layers)
            if each is not None
        }
        assert of[0] == [EVERY, EVERY]
        assert of[1] == [EVERY, 0]
        assert pattern.observes
        assert not pattern.fixed
        own = OwnRows(np.zeros(1, np.int32), np.zeros(1, np.int32), 1)
        assert pattern.wants(own) == Wants(scores=(1,))


def test_what_does_not_fit_the_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    engine = make_engine(checkpoint)
    with pytest.raises(InvalidRequest, match="no seed -1"):
        engine.add(ask("a", [5, 6], asks=toys(-1)))
    engine.add(ask("a", [5, 6], asks=toys()))
    drain(engine)
    narrow = tiny_llama(tmp_path, num_key_value_heads=1)
    with pytest.raises(ConfigError, match="the toy has no seed 0"):
        make_engine(narrow, attention_pattern="toy")


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 29}, {"threads": 2}])
def test_the_ledger_tells_the_recall_of_sampled_rows(
    checkpoint: Path, settings: dict[str, Any]
) -> None:
    """The same rows in any batch and chunk, in prefill and decode, and of patterns alone."""

    def recalls(**settings: Any) -> tuple[dict[str, Any], Ledger]:
        engine = make_engine(checkpoint, recall_every=7, **settings)
        load(engine, lambda number: toys(number) if number % 3 else {})
        bills = {d.request_id: d.ledger for d in drain(engine) if d.ledger is not None}
        return {name: bill.recall for name, bill in bills.items()}, engine.total

    alone, _ = recalls(reuse="none", max_num_seqs=1, max_num_batched_tokens=LONGEST)
    found, total = recalls(reuse="none", **settings)
    assert set(found) == set(alone)
    for name, recall in found.items():
        assert set(recall) == ({"toy"} if int(name) % 3 else set())
        for toy, own in recall.items():
            assert own.samples == alone[name][toy].samples
            assert own.share == pytest.approx(alone[name][toy].share, abs=1e-9)
            assert 0.1 < own.share < 0.999
    assert total.recall["toy"].samples == sum(r["toy"].samples for r in found.values() if r)


def test_no_recall_is_measured_unless_it_is_asked_for(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    engine.add(ask("a", [5] * 200, asks=toys()))
    drain(engine)
    assert not engine.total.recall
    with pytest.raises(ConfigError, match="recall_every must not be negative, got -1"):
        make_engine(checkpoint, recall_every=-1)
