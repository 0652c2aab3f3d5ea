"""Drafts in the engine: the same tokens, a complete bill, and counters that add up."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.ledger import Saving
from ockham.core.speculative import SpeculativeConfig, parse
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request, merged
from tests.helpers import serving
from tests.helpers.foretelling import foretelling
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY = 97


@pytest.fixture(scope="module", params=["full", "window"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "full":
        return tiny_llama(directory, vocab_size=VOCABULARY)
    return tiny_mistral(directory, vocab_size=VOCABULARY, window=12)


make_engine = partial(serving.make_engine, reuse="none", block_size=4, speculative_config="none")


def request(name: str = "a", prompt: list[int] | None = None, **params: Any) -> Request:
    values = {"max_tokens": 24, "seed": 1, **params}
    return serving.ask(name, prompt or [5, 6, 7, 8], **values)


def answers(engine: Engine, *requests: Request) -> list[list[list[int]]]:
    collectors = {each.request_id: Collector(each) for each in requests}
    for each in requests:
        engine.add(each)
    while engine.has_work:
        for delta in engine.step():
            collectors[delta.request_id].add(delta)
        engine.check_integrity()
    outputs = [collector.output() for collector in collectors.values()]
    for output in outputs:
        for choice in output.outputs:
            assert len(choice.drafted) == len(choice.token_ids)
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.9, "top_p": 0.9},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "temperature": 0.7},
        {"logprobs": 2},
        {"min_tokens": 10, "stop_token_ids": [3], "ignore_eos": False},
        {"n": 3, "temperature": 1.0},
    ],
    ids=["greedy", "sampled", "penalties", "logprobs", "min_tokens", "choices"],
)
def test_right_drafts_save_steps_and_change_no_token(
    checkpoint: Path, params: dict[str, Any]
) -> None:
    engine = make_engine(checkpoint)
    asked = request(**params)
    (expected,) = answers(engine, asked)
    plain_steps = engine.scheduler.steps
    texts = [[*asked.prompt_token_ids, *tokens] for tokens in expected]
    engine.speculation = foretelling(VOCABULARY, texts, most=6, right=1.0, branches=1)
    (found,) = answers(engine, asked)
    assert found == expected
    if "n" not in params:  # of several answers with one beginning, it follows one
        assert engine.scheduler.steps - plain_steps < plain_steps / 3


def test_wrong_drafts_cost_rows_and_change_no_token(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    (expected,) = answers(engine, request())
    engine.speculation = foretelling(VOCABULARY, most=5, right=0.0, branches=3)
    assert answers(engine, request()) == [expected]
    counters = engine.speculation.counters
    assert counters.drafts > 0
    assert engine.total.wasted["foretelling"].tokens == counters.tokens - counters.accepted


def test_the_bill_of_a_draft_is_complete(checkpoint: Path) -> None:
    engine = make_engine(checkpoint)
    prompts = {name: request(name, [3 + i, 5, 9], max_tokens=20) for i, name in enumerate("abc")}
    expected = answers(engine, *prompts.values())
    texts = [
        [*each.prompt_token_ids, *tokens[0]]
        for each, tokens in zip(prompts.values(), expected, strict=True)
    ]
    before = engine.total.rows
    engine.speculation = foretelling(VOCABULARY, texts, most=4, right=0.8)
    collectors = {name: Collector(each) for name, each in prompts.items()}
    for each in prompts.values():
        engine.add(each)
    while engine.has_work:
        for delta in engine.step():
            collectors[delta.request_id].add(delta)
    ledgers = [collector.output().ledger for collector in collectors.values()]
    counters = engine.speculation.counters
    assert sum(ledger.rows for ledger in ledgers) == engine.total.rows - before
    saved = [ledger.saved["foretelling"].tokens for ledger in ledgers]
    wasted = [ledger.wasted.get("foretelling", Saving()).tokens for ledger in ledgers]
    assert sum(wasted) == counters.tokens - counters.accepted
    assert sum(counters.accepted_at) == counters.accepted
    # What was accepted as the last token of all saved no step: nothing follows it.
    assert counters.accepted - len(ledgers) <= sum(saved) <= counters.accepted
    for ledger, lost in zip(ledgers, wasted, strict=True):
        assert 0 <= ledger.rows - (3 + 19) - lost <= 1


def test_a_sequence_that_ended_leaves_nothing_behind(checkpoint: Path) -> None:
    engine = make_engine(checkpoint, speculative_config={"adaptive": False})
    answers(engine, request(prompt=[5, 6, 7] * 8), request("b", temperature=1.0))
    assert engine.speculation.stats().bytes == 0
    engine.add(request("c", prompt=[5, 6, 7] * 8))
    for _ in range(4):
        engine.step()
    assert engine.speculation.stats().bytes > 0
    engine.abort("c")
    assert engine.speculation.stats().bytes == 0


def test_deltas_of_one_step_are_told_as_one() -> None:
    first = Delta("a", 0, [1], text="x", drafted=[True])
    other = Delta("b", 0, [9], text="y")
    last = Delta("a", 0, [2], text="z", finish_reason="length", finished=True)
    two, one = merged([first, other, last])  # what ends a request is the last of it
    assert (one.token_ids, one.text, one.drafted) == ([1, 2], "xz", [True, False])
    assert (one.finish_reason, one.finished) == ("length", True)
    assert two is other


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, SpeculativeConfig(method="none")),
        ("auto", SpeculativeConfig()),
        ("copying", SpeculativeConfig(method="copying")),
        (
            '{"method": "copying", "num_speculative_tokens": 4, "prompt_lookup_min": 2}',
            SpeculativeConfig(
                method="copying", num_speculative_tokens=4, options={"prompt_lookup_min": 2}
            ),
        ),
        ({"adaptive": False}, SpeculativeConfig(adaptive=False)),
        ({"model": "small"}, SpeculativeConfig(options={"model": "small"})),
        ("copying, trie", SpeculativeConfig(method="copying,trie")),
        ({"model": None}, SpeculativeConfig()),
        ("copying:3,trie", SpeculativeConfig(method="copying:3,trie")),
        (
            {"method": "draft_model:small,branches=2,copying"},
            SpeculativeConfig(method="draft_model:small,branches=2,copying"),
        ),
        (
            {"method": "trie", "branches": 4},
            SpeculativeConfig(method="trie", options={"branches": 4}),
        ),
    ],
)
def test_settings_are_read(setting: Any, expected: SpeculativeConfig) -> None:
    assert parse(setting) == expected


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("{", "no valid JSON"),
        ({"num_speculative_tokens": 0}, "must lie in"),
        ({"num_speculative_tokens": 5000}, "must lie in"),
        ({"prompt_lookup_min": 0}, "at least 1"),
        ({"num_tokens": 3}, "unknown field `num_tokens`"),
        ({"num_speculative_tokens": "many"}, "num_speculative_tokens"),
        ({"num_speculative_tokens": 0}, r'method "none"\. It has'),
        (
            {"method": "copying", "model": "small"},
            "model is a setting of the method corpus or draft_model .*, and the method is 'copy",
        ),
        ("auto,copying", "name it alone"),
        ({"method": "copying", "branches": 2}, "branches is a setting of the method draft_model"),
        ({"method": "trie", "prompt_lookup_min": 5}, "prompt_lookup_min is a setting of"),
        ({"draft_context": 64}, "draft_context is a setting of the method eagle3 or mtp or rapid"),
        ({"learned_file": "kept"}, "learned_file is a setting of the method trie"),
        ({"learned_bytes": 2 << 20}, "learned_bytes is a setting of the method recycling or"),
        ({"options": {"branches": 2}}, "unknown field `options`"),
        ({"method": "draft_model", "branches": "2"}, "Expected `int`, got `str`"),
        ({"method": "copying:0"}, "prompt_lookup_min must be at least 1"),
        ({"method": "copying:branches=2"}, "the drafter 'copying' has no option 'branches'"),
        ({"method": "grammar:2"}, "the drafter 'grammar' has no options"),
        ([], "Expected `object`"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_wrong(setting: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineConfig(speculative_config=setting)


def test_an_unknown_method_is_refused_with_those_there_are(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no drafter called 'eagle9'; there is: auto, copying, "):
        make_engine(checkpoint, speculative_config="eagle9")


def test_a_long_prompt_is_told_in_several_steps(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ockham.engine.speculation.streams._MOST_FED", 40)
    engine = make_engine(checkpoint)
    asked = request(prompt=[5, 6, 7, 8] * 40, max_tokens=30)
    (expected,) = answers(engine, asked)
    engine.speculation = engine.make_speculation(parse({"method": "copying", "adaptive": False}))
    told: list[int] = []
    feed = engine.speculation.streams.feed

    def fed(known: Any, *rest: Any, **how: Any) -> None:
        before = known.fed
        feed(known, *rest, **how)
        told.append(known.fed - before)

    engine.speculation.streams.feed = fed  # type: ignore[method-assign]
    assert answers(engine, asked) == [expected]
    assert told[:4] == [40, 40, 40, 40]
    assert max(told) == 40
    assert engine.speculation.counters.drafts > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lab-medusa", r'write \{"model": "lab-medusa"\}'),
        ({"method": "draft_model", "model": "lab-medusa"}, "made for the method 'medusa'"),
        ("draft_model:lab-medusa", "made for the method 'medusa'"),
        (
            {"model": "lab-medusa", "branches": 2},
            "branches is a setting of the method draft_model or eagle3 or mtp or rapid, and the "
            "method is 'auto'",
        ),
        ({"method": "medusa", "model": "lab-drafter"}, "is a model: it drafts by"),
        ({"method": "corpus", "model": "nowhere"}, "there is no directory 'nowhere'"),
    ],
)
def test_what_drafts_otherwise_is_told(
    checkpoint: Path, setting: dict[str, str] | str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine(checkpoint, speculative_config=setting)
