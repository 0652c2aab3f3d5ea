"""A fixed context that is reordered once: who shares it, what it leaves out, and that nothing
beside it changes a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.cache.state import View
from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, InvalidRequest, OckhamError
from ockham.core.registry import find, make, make_ask, make_asks
from ockham.core.seams import AttentionGroup
from ockham.core.state_key import salt_of
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta
from tests.helpers import serving
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import drain, tokens_of
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY, LONGEST, CONTEXT = 97, 500, 200
HELD = 192
"""Cells of the context's whole blocks."""
ask = partial(serving.ask, max_tokens=60, seed=7)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    directory: Path = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory)


def asks(**fields: Any) -> dict[str, Any]:
    numbers = {"context": CONTEXT, "share": 0.0, "dense_layers": 0, **fields}
    return {"pattern/squeezed": numbers}


def make_engine(checkpoint: Path, **settings: Any) -> Engine:
    values = {"max_model_len": LONGEST, "speculative_config": "none"}
    return serving.make_engine(checkpoint, **{**values, **settings})


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    """Questions of different lengths about two contexts, in turn."""
    rng = np.random.default_rng(seed)
    contexts = [rng.integers(2, VOCABULARY, CONTEXT).tolist() for _ in range(2)]
    return [
        [*contexts[n % 2], *rng.integers(2, VOCABULARY, rng.integers(3, 60)).tolist()]
        for n in range(count)
    ]


def some(number: int) -> dict[str, Any]:
    """Every third request asks for nothing, every third chooses in its question too."""
    return {} if number % 3 == 0 else asks(prompts=number % 3 == 1)


def load(engine: Engine, asking: Callable[[int], dict[str, Any]]) -> None:
    for number, prompt in enumerate(prompts(6)):
        temperature = 0.8 * (number % 2)
        engine.add(ask(str(number), prompt, asks=asking(number), temperature=temperature))


def alone(checkpoint: Path, asking: Callable[[int], dict[str, Any]]) -> dict[Any, list[int]]:
    engine = make_engine(checkpoint, reuse="none", max_num_batched_tokens=LONGEST, threads=1)
    found: dict[Any, list[int]] = {}
    for number, prompt in enumerate(prompts(6)):
        temperature = 0.8 * (number % 2)
        engine.add(ask(str(number), prompt, asks=asking(number), temperature=temperature))
        found |= tokens_of(drain(engine))
    return found


@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_company_chunks_sharing_preemption_and_drafts_change_no_token(
    checkpoint: Path, block_size: int
) -> None:
    expected = alone(checkpoint, some)
    plain = alone(checkpoint, lambda number: {})
    assert any(expected[key] != plain[key] for key in plain), "it changes something"
    assert all(expected[str(n), 0] == plain[str(n), 0] for n in (0, 3)), "who asks for nothing"
    for settings in ({}, {"max_num_batched_tokens": 37}):
        engine = make_engine(checkpoint, block_size=block_size, **settings)
        load(engine, some)
        deltas: list[Delta] = []
        for step in range(300):
            if step % 37 == 30 and engine.scheduler.running:
                engine.scheduler.preempt(engine.scheduler.running[-1])
            deltas += engine.step()
        assert tokens_of(deltas + drain(engine)) == expected
        engine.state.check_integrity([], engine.reuse.held())
    texts = [[*p, *expected[str(n), 0]] for n, p in enumerate(prompts(6))]
    engine = make_engine(checkpoint, block_size=block_size)
    engine.speculation = foretelling(VOCABULARY, texts, most=9, seed=1, right=0.8, branches=3)
    load(engine, some)
    assert tokens_of(drain(engine)) == expected
    assert engine.speculation.counters.accepted > 30


def test_all_who_ask_about_a_context_share_it_and_its_order_is_found_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(checkpoint)
    order, ordered = engine.state.alike, []

    def alike(view: View, group: int, cells: range) -> Ints:
        ordered.append(cells)
        return order(view, group, cells)

    monkeypatch.setattr(engine.state, "alike", alike)
    questions = prompts(6)[::2]
    computed, written = [], []
    for number, (prompt, asking) in enumerate(
        zip([questions[0], *questions], [{}, asks(), asks(share=0.5), asks()], strict=True)
    ):
        engine.add(ask(str(number), prompt, asks=asking, temperature=0))
        ledger = [d.ledger for d in drain(engine) if d.ledger is not None][-1]
        computed.append(ledger.prompt_tokens_computed)
        written.append(ledger.state_written_bytes)
    # The second goes on from the first one's context and reorders that, the others from its own.
    lengths = [len(prompt) for prompt in questions]
    assert computed == [lengths[0], *(n - HELD for n in lengths)]
    assert len(ordered) == 1
    assert written[1] > written[3] + engine.cost.state_written_bytes(HELD - 64) / 2
    salts = {facts.salt for facts in engine.reuse.facts()}
    assert len(salts) == 2
    assert {salt_of(salt) for salt in salts} == {""}, "a tenant's own"


def test_the_order_comes_back_from_memory(checkpoint: Path) -> None:
    prompt = prompts(1)[0]
    plain, engine = make_engine(checkpoint), make_engine(checkpoint, swap_space=0.05)
    said, ledgers = [], []
    for each in (plain, engine, engine):
        each.add(ask("a", prompt, asks=asks(), temperature=0))
        deltas = drain(each)
        said.append(tokens_of(deltas)["a", 0])
        assert deltas[-1].ledger is not None
        ledgers.append(deltas[-1].ledger)
        assert each.state.reclaim is not None
        each.state.reclaim([1 << 20] * len(each.state.groups))
    assert said[0] == said[1] == said[2]
    assert ledgers[2].saved["swap"].tokens == HELD
    computed = len(prompt) - HELD + len(said[2]) - 1
    assert ledgers[2].state_written_bytes == engine.cost.state_written_bytes(computed)


def test_a_context_in_another_order_is_nobodys_beginning(checkpoint: Path) -> None:
    """Another text that begins like the context, or goes on after it, has nothing of it."""
    engine, [one, *_] = make_engine(checkpoint), prompts(1)
    other = [*one[:100], *one[50:150], *one[CONTEXT:]]
    expected = []
    for prompt in (one, other):
        fresh = make_engine(checkpoint, reuse="none")
        fresh.add(ask("a", prompt, asks=asks(), temperature=0))
        expected.append(tokens_of(drain(fresh))["a", 0])
    for prompt, said in zip((one, other, one), (*expected, expected[0]), strict=True):
        engine.add(ask("a", prompt, asks=asks(), temperature=0))
        assert tokens_of(drain(engine))["a", 0] == said


def test_what_is_left_out_is_saved_and_what_is_read_for_it_is_paid(checkpoint: Path) -> None:
    engine, prompt, ledgers = make_engine(checkpoint), prompts(1)[0], []
    for number, asking in enumerate(({}, {}, asks(), asks())):
        engine.add(ask(str(number), prompt, asks=asking, temperature=0, max_tokens=40))
        ledgers.append([d.ledger for d in drain(engine) if d.ledger is not None][-1])
    plain, again = ledgers[1], ledgers[3]
    saved = again.saved["squeezed"]
    # A plain request finds all but the last token of its prompt; this one its context.
    question = len(prompt) - HELD
    more = engine.cost.state_read_bytes(HELD + 1, question) - engine.cost.state_read_bytes(
        len(prompt), 1
    )
    assert again.state_read_bytes + saved.bytes == plain.state_read_bytes + more
    assert saved.bytes > 0.3 * plain.state_read_bytes
    # The order is paid for by who finds it.
    assert ledgers[2].state_read_bytes > again.state_read_bytes
    assert ledgers[2].flops > again.flops


def test_all_is_read_where_nothing_may_be_left_out(checkpoint: Path) -> None:
    """The sums run in another order, which changes bits and no more."""
    said = []
    for asking in ({}, asks(share=1.0)):
        engine = make_engine(checkpoint)
        engine.add(ask("a", prompts(1)[0], asks=asking, temperature=0, logprobs=1))
        deltas = drain(engine)
        found = [place for delta in deltas for place in delta.logprobs or ()]
        said.append([max(each.logprob for each in place.values()) for place in found])
        assert deltas[-1].ledger is not None
        saved = deltas[-1].ledger.saved.get("squeezed")
        assert saved is None or saved.bytes == 0
    np.testing.assert_allclose(said[0][:8], said[1][:8], atol=0.05)


def test_choices_and_moved_requests_go_on_choosing(checkpoint: Path) -> None:
    def forked() -> Engine:
        engine = make_engine(checkpoint)
        engine.add(ask("a", prompts(1)[0], asks=asks(), n=3, temperature=1.0))
        return engine

    expected = tokens_of(drain(forked()))
    here, there = forked(), make_engine(checkpoint, max_num_batched_tokens=11)
    deltas: list[Delta] = []
    for _ in range(30):
        deltas += here.step()
    assert there.import_request(here.export_request("a")) == "a"
    assert tokens_of(deltas + drain(there)) == expected


def test_short_prompts_are_read_whole_where_a_setting_names_it(checkpoint: Path) -> None:
    plain = make_engine(checkpoint)
    setting = f"squeezed:context={CONTEXT},share=0,dense_layers=0"
    engine = make_engine(checkpoint, attention_pattern=setting)
    for prompt, same in ((prompts(1)[0][:HELD], True), (prompts(1)[0], False)):
        said = []
        for each in (plain, engine):
            each.add(ask("a", prompt, temperature=0))
            said.append(tokens_of(drain(each))["a", 0])
        assert (said[0] == said[1]) is same


def test_a_pool_that_holds_the_text_once_serves_it(checkpoint: Path) -> None:
    """What the cache holds of the context goes, so that it need not be copied."""
    expected = tokens_of(drain_of(make_engine(checkpoint), 4))
    page = make_engine(checkpoint).model.layouts[0].page_bytes
    small = make_engine(checkpoint, kv_cache_memory_bytes=18 * page, max_model_len=280)
    assert tokens_of(drain_of(small, 4)) == expected
    small.state.check_integrity([], small.reuse.held())


def drain_of(engine: Engine, requests: int) -> list[Delta]:
    for number, prompt in enumerate(prompts(requests)):
        engine.add(ask(str(number), prompt, asks=asks(), temperature=0, max_tokens=10))
    return drain(engine)


def test_what_is_pinned_is_not_reordered_in_its_place(checkpoint: Path) -> None:
    [prompt] = prompts(1)
    page = make_engine(checkpoint).model.layouts[0].page_bytes
    engine = make_engine(checkpoint, kv_cache_memory_bytes=18 * page, max_model_len=280)
    engine.add(ask("a", prompt, temperature=0, max_tokens=2))
    drain(engine)
    assert engine.reuse.pin(np.array(prompt[:HELD], np.int32), "", True) == HELD
    engine.add(ask("b", prompt, asks=asks(), temperature=0, max_tokens=2))
    with pytest.raises(OckhamError, match="what is pinned leaves no room"):
        drain(engine)


def test_layers_with_a_window_keep_their_order(tmp_path: Path) -> None:
    groups = [AttentionGroup((0, 2, 3), 2, None), AttentionGroup((1,), 4, 100)]
    opened = make("pattern", "squeezed").open(
        make_ask("pattern/squeezed", {"context": 200}), groups
    )
    assert opened.choice(0).layers == (False, True, True)
    assert opened.choice(1) is None
    assert opened.reorders == range(64, HELD)
    engine = make_engine(tiny_mistral(tmp_path, window=150))
    engine.add(ask("a", prompts(1)[0], asks=asks(), temperature=0))
    deltas = drain(engine)
    assert deltas[-1].ledger is not None
    assert "squeezed" not in deltas[-1].ledger.saved


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"context": -1}, "context must lie in"),
        ({"context": 1 << 40}, "context must lie in"),
        ({"share": 1.5}, r"share must lie in \[0, 1\], got 1.5"),
        ({"within": -1.0}, "within must be a number from 0 on"),
        ({"sinks": -1}, "sinks must lie in"),
        ({"dense_layers": -1}, "dense_layers must lie in"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_asks({"pattern/squeezed": fields})
    [(field, value)] = fields.items()
    with pytest.raises(ConfigError, match=words):
        make("pattern", f"squeezed:{field}={value}")


def test_it_is_registered_as_approximate() -> None:
    technique = find("pattern", "squeezed")
    assert not technique.exact
    assert technique.books == ("squeezed",)
