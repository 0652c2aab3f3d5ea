"""The evidence for patterns says what was left out, and what that did to the answers."""

from __future__ import annotations

import pytest

from ockham.core.config import EngineConfig
from ockham.kernels.native import core
from ockham.lab.evidence import Bench, choosers, contexts, patterns, recipe_of


def test_streaming_is_judged_by_what_it_leaves_out_and_what_that_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patterns, "QUESTIONS", 1)
    monkeypatch.setattr(patterns, "WATCHED", 1)
    measure = recipe_of("pattern/streaming").measure
    assert measure is not None
    row = measure(Bench(EngineConfig(max_model_len=600, kv_cache_memory_bytes=64 << 20), rounds=1))
    assert not row.exact
    assert 0.05 < row.saved < 0.5
    assert row.fidelity is not None
    assert row.fidelity.positions > 3
    assert row.scores is not None


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_long_contexts_are_counted_in_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "KEYS", 1024)
    monkeypatch.setattr(patterns, "LAYERS", 1)
    measure = recipe_of("pattern/streaming-long").measure
    assert measure is not None
    row = measure(Bench(EngineConfig(), rounds=1))
    heads, high = 4, range(1024 - 64 + 1, 1024 + 1)
    every = heads * (16 * 1024 + sum(high))
    left_out = heads // 2 * (16 * 11 * 64 + 64 * 11 * 64)
    assert row.without == every
    assert row.with_ == every - left_out


@pytest.mark.parametrize("name", ["quest", "scan"])
def test_what_choosing_leaves_out_is_counted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(patterns, "QUESTIONS", 1)
    measure = recipe_of(f"pattern/{name}").measure
    assert measure is not None
    row = measure(Bench(EngineConfig(max_model_len=600, kv_cache_memory_bytes=64 << 20), rounds=1))
    assert not row.exact
    # Scanning all keys takes half of the products of attending to them, and more than it leaves out
    # of a short text.
    low, high = {"quest": (0.01, 0.6), "scan": (-0.5, 0.0)}[name]
    assert low < row.saved < high
    assert row.scores is not None


@pytest.mark.skipif(core is None, reason="the native core was not built")
@pytest.mark.parametrize("name", ["quest", "scan", "a2ats"])
def test_choosing_in_long_contexts_is_counted_in_keys(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(choosers, "KEYS", 2048)
    monkeypatch.setattr(choosers, "LAYERS", 1)
    measure = recipe_of(f"pattern/{name}-long").measure
    assert measure is not None
    row = measure(Bench(EngineConfig(), rounds=1))
    unwritten = sum(range(16))
    assert row.without == 4 * (16 * 2048 - unwritten)
    assert row.with_ == 4 * (16 * 4 * 64 - unwritten)  # a tenth of 32 blocks


@pytest.mark.skipif(core is None, reason="the native core was not built")
@pytest.mark.parametrize("name", ["quest", "scan"])
def test_a_choice_for_four_tokens_reads_a_quarter_to_choose(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(choosers, "LONGER", 2048)
    monkeypatch.setattr(choosers, "LAYERS", 1)
    measure = recipe_of(f"pattern/{name}-every-long").measure
    assert measure is not None
    row = measure(Bench(EngineConfig(), rounds=1))
    assert row.without > 0
    assert row.saved == pytest.approx(0.75, abs=0.01)


def test_questions_about_one_text_read_less_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "QUESTIONS", 3)
    monkeypatch.setattr(contexts, "TOKENS", 500)
    measure = recipe_of("pattern/squeezed").measure
    assert measure is not None
    row = measure(Bench(EngineConfig(max_model_len=600, kv_cache_memory_bytes=64 << 20), rounds=1))
    assert not row.exact
    assert row.scores is not None
    assert row.fidelity is not None
    assert row.recall is not None
    assert 0.5 < row.recall < 1
