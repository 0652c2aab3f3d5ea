"""Patterns whose queries choose what they read: what they leave out, who shares what, and that
nothing beside them changes a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.registry import find, make, make_ask, make_asks
from ockham.core.seams import AttentionGroup
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta
from tests.helpers import serving
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY, LONGEST = 97, 500
NAMES = ["quest", "scan"]
TIMES = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0}
ask = partial(serving.ask, max_tokens=90, seed=7)


@pytest.fixture(scope="module", params=NAMES)
def name(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    directory: Path = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory)


EVERY = 8


def asks(name: str, **fields: Any) -> dict[str, Any]:
    numbers = {"tokens": 0, "share": 0.3, "sinks": 0, "local": 1, "dense_layers": 0, **fields}
    return {f"pattern/{name}": numbers}


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, rng.integers(150, 330)).tolist() for _ in range(count)]


def load(engine: Engine, asking: Callable[[int], dict[str, Any]], **params: Any) -> None:
    for number, prompt in enumerate(prompts(6)):
        asked = {"temperature": 0.8 * (number % 2), "max_tokens": 30 + 10 * number, **params}
        engine.add(ask(str(number), prompt, asks=asking(number), **asked))


def some(name: str, every: int = 1) -> Callable[[int], dict[str, Any]]:
    """Every third request asks for nothing; the others choose behind their prompt, or from a token
    of it on."""
    return lambda number: (
        {} if number % 3 == 0 else asks(name, first=None if number % 3 == 1 else 90, every=every)
    )


def alone(checkpoint: Path, asking: Callable[[int], dict[str, Any]]) -> dict[Any, list[int]]:
    engine = make_engine(checkpoint, reuse="none", max_num_batched_tokens=LONGEST, threads=1)
    found: dict[Any, list[int]] = {}
    for number, prompt in enumerate(prompts(6)):
        asked = {"temperature": 0.8 * (number % 2), "max_tokens": 30 + 10 * number}
        engine.add(ask(str(number), prompt, asks=asking(number), **asked))
        found |= tokens_of(drain(engine))
    return found


def timeless(ledger: Ledger | None) -> Ledger | None:
    return None if ledger is None else msgspec.structs.replace(ledger, **TIMES)


@pytest.mark.parametrize("every", [1, EVERY])
@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_company_chunks_preemption_and_drafts_change_no_token(
    checkpoint: Path, name: str, block_size: int, every: int
) -> None:
    expected = alone(checkpoint, some(name, every))
    plain = alone(checkpoint, lambda number: {})
    assert any(expected[key] != plain[key] for key in plain), "it changes something"
    assert all(expected[str(n), 0] == plain[str(n), 0] for n in (0, 3)), "who asks for nothing"
    for settings in ({}, {"max_num_batched_tokens": 37}):
        engine = make_engine(checkpoint, block_size=block_size, **settings)
        load(engine, some(name, every))
        deltas: list[Delta] = []
        for step in range(300):
            if step % 37 == 30 and engine.scheduler.running:
                engine.scheduler.preempt(engine.scheduler.running[-1])
            deltas += engine.step()
        assert tokens_of(deltas + drain(engine)) == expected
    texts = [[*p, *expected[str(n), 0]] for n, p in enumerate(prompts(6))]
    engine = make_engine(checkpoint, block_size=block_size)
    engine.speculation = foretelling(VOCABULARY, texts, most=9, seed=1, right=0.8, branches=3)
    load(engine, some(name, every))
    assert tokens_of(drain(engine)) == expected
    assert engine.speculation.counters.accepted > 50


@pytest.mark.parametrize("every", [1, EVERY])
def test_the_kept_decoding_says_and_books_what_the_plain_path_does(
    checkpoint: Path, name: str, every: int
) -> None:
    kept, plain = make_engine(checkpoint), make_engine(checkpoint)
    plain.attach(next(iter(plain.model.program.breakpoints)), lambda run: None)
    for engine in (kept, plain):
        load(engine, some(name, every))
    steps = 0
    while kept.has_work:
        deltas, expected = kept.step(), plain.step()
        for delta in (*deltas, *expected):
            delta.ledger = timeless(delta.ledger)
        assert deltas == expected
        assert timeless(kept.total) == timeless(plain.total)
        steps += kept.runner.decoding is not None
    assert steps > 40
    assert kept.total.saved[name].bytes > 0


def test_what_is_left_out_is_saved_and_what_is_read_for_it_is_paid(
    checkpoint: Path, name: str
) -> None:
    ledgers = []
    for asking in ({}, asks(name), asks(name, every=EVERY)):
        engine = make_engine(checkpoint)
        engine.add(ask("a", prompts(1)[0], asks=asking, temperature=0))
        ledgers.append([d.ledger for d in drain(engine) if d.ledger is not None][-1])
    full, *others = ledgers
    for own in others:
        saved = own.saved[name]
        assert own.flops + saved.flops == full.flops
        # What was computed and read to choose is in what the request took, and no saving.
        assert own.state_read_bytes + saved.bytes == full.state_read_bytes
        assert saved.bytes > 0.2 * full.state_read_bytes
    each, seldom = (own.saved[name].bytes for own in others)
    assert seldom > each, "seven of eight tokens read nothing to choose"


def test_prompts_are_everybodys_and_what_comes_after_them_is_nobodys(
    checkpoint: Path, name: str
) -> None:
    engine, prompt = make_engine(checkpoint), prompts(1)[0]
    computed, said = [], []
    orders = [("a", asks(name)), ("b", {}), ("c", asks(name)), ("d", {})]
    for number, asking in orders:
        before = engine.total.prompt_tokens_computed
        engine.add(ask(number, prompt, asks=asking, temperature=0))
        said.append(tokens_of(drain(engine))[number, 0])
        computed.append(engine.total.prompt_tokens_computed - before)
    assert computed == [len(prompt), 1, 1, 1]
    assert said[0] == said[2] != said[1] == said[3]
    # A text that goes on after what was chosen computes that anew, as full attention does.
    longer = [*prompt, *said[0]]
    before = engine.total.prompt_tokens_computed
    engine.add(ask("e", longer, temperature=0))
    drain(engine)
    assert engine.total.prompt_tokens_computed - before >= len(said[0]) - 1


def test_rows_that_choose_in_prompts_share_with_those_that_ask_the_same(
    checkpoint: Path, name: str
) -> None:
    engine, prompt = make_engine(checkpoint), prompts(1)[0]
    computed = []
    for number, asking in (("a", asks(name, first=80)), ("b", asks(name, first=80)), ("c", {})):
        before = engine.total.prompt_tokens_computed
        engine.add(ask(number, prompt, asks=asking, temperature=0))
        drain(engine)
        computed.append(engine.total.prompt_tokens_computed - before)
    assert computed == [len(prompt), 1, len(prompt)]


@pytest.mark.parametrize("every", [1, EVERY, 64])
def test_choices_and_moved_requests_go_on_choosing(checkpoint: Path, name: str, every: int) -> None:
    def forked() -> Engine:
        engine = make_engine(checkpoint)
        engine.add(ask("a", prompts(1)[0], asks=asks(name, every=every), n=3, temperature=1.0))
        return engine

    expected = tokens_of(drain(forked()))
    here, there = forked(), make_engine(checkpoint, max_num_batched_tokens=11)
    deltas: list[Delta] = []
    for _ in range(40):
        deltas += here.step()
    assert there.import_request(here.export_request("a")) == "a"
    assert tokens_of(deltas + drain(there)) == expected


def test_a_setting_is_what_requests_get_that_ask_for_nothing(checkpoint: Path, name: str) -> None:
    setting = f"{name}:tokens=0,share=0.3,sinks=0,local=1,dense_layers=0"
    asked, plain = make_engine(checkpoint), make_engine(checkpoint, attention_pattern=setting)
    said = []
    for engine, asking in ((asked, asks(name)), (plain, {}), (plain, {"pattern/full": True})):
        engine.add(ask("a", prompts(1)[0], asks=asking, temperature=0))
        said.append(tokens_of(drain(engine))["a", 0])
    assert said[0] == said[1] != said[2]


def test_layers_with_a_window_and_the_first_layers_read_all(tmp_path: Path, name: str) -> None:
    groups = [AttentionGroup((0, 2, 3), 2, None), AttentionGroup((1,), 4, 100)]
    opened = make("pattern", name).open(make_ask(f"pattern/{name}", True), groups)
    assert opened.choice(0).layers == (False, True, True)
    assert opened.choice(1) is None
    none = make("pattern", f"{name}:dense_layers=4")
    assert none.open(make_ask(f"pattern/{name}", True), groups) is None
    engine = make_engine(tiny_mistral(tmp_path, window=150))
    engine.add(ask("a", prompts(1)[0], asks=asks(name), temperature=0))
    deltas = drain(engine)
    assert deltas[-1].ledger is not None
    assert name not in deltas[-1].ledger.saved


def test_a_prefix_is_taken_up_to_a_token_that_chooses(checkpoint: Path, name: str) -> None:
    """And what is said after it is what is said alone. Not so where the prompt is read whole."""
    prompt, asking = prompts(1)[0], asks(name, first=80, every=64)
    longer = [*prompt[:200], *prompts(2)[1][:30]]
    computed, said = [], []
    for texts in ([longer], [prompt, longer]):
        engine = make_engine(checkpoint)
        for text in texts:
            before = engine.total.prompt_tokens_computed
            engine.add(ask("a", text, asks=asking, temperature=0))
            said.append(tokens_of(drain(engine))["a", 0])
        computed.append(engine.total.prompt_tokens_computed - before)
    assert said[0] == said[2]
    assert computed == [230, 230 - 192]
    engine = make_engine(checkpoint)
    for text in (prompt, longer):
        before = engine.total.prompt_tokens_computed
        engine.add(ask("a", text, asks=asks(name, every=64), temperature=0))
        drain(engine)
    assert engine.total.prompt_tokens_computed - before == 30


def test_cells_of_other_prompts_bring_no_choice(checkpoint: Path, name: str) -> None:
    engine = make_engine(checkpoint, reuse="prefix,edit")
    for fields, refused in (({"first": 80}, True), ({}, False)):
        asking = {**asks(name, every=4, **fields), "reuse/edit": True}
        if refused:
            with pytest.raises(InvalidRequest, match="leave out first, every or reuse"):
                engine.add(ask("a", prompts(1)[0], asks=asking))
        else:
            engine.add(ask("a", prompts(1)[0], asks=asking))


def test_what_is_held_of_choices_is_in_the_memory_plan(checkpoint: Path, name: str) -> None:
    states = []
    for every in (1, 4, 8):
        setting = f"{name}:tokens=0,share=0.3,sinks=0,local=1,dense_layers=0,every={every}"
        states.append(make_engine(checkpoint, attention_pattern=setting).model.plan.state_bytes)
    assert states[0] < states[2] < states[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"every": 0}, "every must divide 64"),
        ({"every": 3}, "every must divide 64"),
        ({"every": 128}, "every must divide 64.*got 128"),
        ({"tokens": -1}, "tokens must lie in"),
        ({"tokens": 1 << 40}, "tokens must lie in"),
        ({"share": 1.5}, r"share must lie in \[0, 1\], got 1.5"),
        ({"sinks": -1}, "sinks must lie in"),
        ({"local": 0}, "local must lie in"),
        ({"dense_layers": -1}, "dense_layers must lie in"),
        ({"first": -1}, "first must lie in"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    name: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_asks({f"pattern/{name}": fields})
    [(field, value)] = fields.items()
    with pytest.raises(ConfigError, match=words):
        make("pattern", f"{name}:{field}={value}")


def test_a_budget_that_sinks_and_the_latest_blocks_fill_is_refused(name: str) -> None:
    words = r"tokens=100 leaves nothing to choose: sinks=1 and local=2 are 192 tokens"
    with pytest.raises(ConfigError, match=words):
        make("pattern", f"{name}:tokens=100")
    groups = [AttentionGroup((0, 1, 2), 2, None)]
    with pytest.raises(InvalidRequest, match=words):
        make("pattern", name).open(make_ask(f"pattern/{name}", {"tokens": 100}), groups)
    for fields in ({"tokens": 0}, {"tokens": 128, "sinks": 0}, {"tokens": 192}):
        make("pattern", name).open(make_ask(f"pattern/{name}", fields), groups)


def test_it_is_registered_as_approximate(name: str) -> None:
    technique = find("pattern", name)
    assert not technique.exact
    assert technique.books == (name,)
