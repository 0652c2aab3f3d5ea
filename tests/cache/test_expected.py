"""Expected attention: what the queries so far foretell, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham.cache.keep.expected import FOLDED, Queries, mean_rotation, unrotated
from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make_asks
from ockham.core.seams import LayerAttention, Observer, OwnRows, Seen, Wants
from ockham.engine.engine import Engine
from tests.helpers.serving import ask, make_engine
from tests.helpers.tiny import tiny_llama

WIDTH, HEADS, KV_HEADS = 8, 4, 2
FREQUENCIES: Floats = np.array([1.0, 0.3, 0.02], np.float32)
TURNING = LayerAttention(HEADS, WIDTH, 0.35, FREQUENCIES, 1.2, lambda: np.eye(1, dtype=np.float32))
PLAIN = LayerAttention(HEADS, WIDTH, 0.35, None, 1.0, lambda: np.eye(1, dtype=np.float32))


def rotated(layer: LayerAttention, queries: Floats, places: Ints) -> Floats:
    """By complex numbers: element i and element i + half are one."""
    if layer.inverse_frequencies is None:
        return queries
    half = len(layer.inverse_frequencies)
    turn = np.exp(1j * places[:, None] * layer.inverse_frequencies)[:, None] * layer.rotary_scale
    pairs = (queries[..., :half] + 1j * queries[..., half : 2 * half]) * turn
    parts = [pairs.real, pairs.imag, queries[..., 2 * half :]]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def drawn(count: int, seed: int = 0) -> Floats:
    found: Floats = np.random.default_rng(seed).normal(0.3, 1.0, (count, HEADS, WIDTH))
    return found.astype(np.float32)


@pytest.mark.parametrize("layer", [TURNING, PLAIN], ids=["rotary", "plain"])
def test_queries_are_turned_back(layer: LayerAttention) -> None:
    queries, places = drawn(9), np.arange(40, 49, dtype=np.int32)
    assert np.allclose(
        unrotated(layer, rotated(layer, queries, places), places), queries, atol=1e-5
    )


@given(chunks=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_no_chunk_changes_a_bit_of_the_statistics(chunks: list[int]) -> None:
    count = sum(chunks)
    queries, places = drawn(count).reshape(count, -1), np.arange(count, dtype=np.int32)
    whole, parts = Queries(TURNING), Queries(TURNING)
    whole.add(queries, places)
    begin = 0
    for chunk in chunks:
        parts.add(queries[begin : begin + chunk], places[begin : begin + chunk])
        begin += chunk
    one, other = whole.expected(count, 16), parts.expected(count, 16)
    assert np.array_equal(one.mean, other.mean)
    assert np.array_equal(one.half_covariance, other.half_covariance)


@pytest.mark.parametrize("layer", [TURNING, PLAIN], ids=["rotary", "plain"])
@pytest.mark.parametrize("count", [5, FOLDED, 3 * FOLDED + 7])
def test_logits_are_those_of_the_formula(layer: LayerAttention, count: int) -> None:
    """log E exp(scale q k) = scale m k + scale^2 k C k / 2, of mean m and covariance C of queries
    that are turned on the average over the places ahead."""
    plain, places = drawn(count), np.arange(3, 3 + count, dtype=np.int32)
    queries = Queries(layer)
    queries.add(rotated(layer, plain, places).reshape(count, -1), places)
    keys = np.random.default_rng(1).normal(size=(KV_HEADS, 6, WIDTH)).astype(np.float32)
    found = queries.expected(count, 20).logits(keys)
    ahead = np.arange(count, count + 20, dtype=np.int32)
    basis = np.eye(WIDTH, dtype=np.float32)[:, None]
    turn = np.mean([rotated(layer, basis, np.full(WIDTH, a))[:, 0].T for a in ahead], axis=0)
    assert np.allclose(mean_rotation(layer, ahead), turn, atol=1e-5)
    for head in range(HEADS):
        mean = turn @ plain[:, head].mean(axis=0)
        spread = turn @ np.cov(plain[:, head].T, bias=True) @ turn.T
        for number, key in enumerate(keys[head // 2]):
            expected = 0.35 * mean @ key + 0.35**2 / 2 * key @ spread @ key
            assert found[head // 2, head % 2, number] == pytest.approx(expected, abs=1e-4)


class _Rows(Observer):
    """Keeps the queries of every row of a layer, and how its rows look at keys."""

    def __init__(self) -> None:
        self.queries: list[Floats] = []

    def wants(self, own: OwnRows) -> Wants:
        return Wants(queries=(1,), rows=np.arange(len(own.places), dtype=np.int32))

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self.queries.append(seen.queries[1])


def kept_by(engine: Engine, name: str, given: dict[str, Any], tokens: list[int]) -> tuple[Any, Any]:
    """The cells that a request keeps of its prompt, and what layer 1 held before."""
    rows = _Rows()
    engine.add(ask("one", tokens, asks=make_asks({f"keep/{name}": given}), max_tokens=4))
    engine.groups["one"].first.observe(rows)
    held = kept = None
    while engine.has_work:
        engine.step()
        for sequence in engine.scheduler.running:
            view = sequence.view
            assert view is not None, "a running sequence has a view"
            if view.tokens == len(tokens) and view.groups[0].kept is None:
                held = engine.state.held(view, 0).read(0, len(tokens))
            elif kept is None:
                kept = view.groups[0].kept
    return kept, (np.concatenate(rows.queries)[: len(tokens)], held)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_cells_stay_that_the_formula_names(tmp_path: Any, backend: str) -> None:
    engine = make_engine(
        tiny_llama(tmp_path), backend=backend, speculative_config="none", max_num_batched_tokens=13
    )
    tokens = np.random.default_rng(5).integers(2, 97, 90).tolist()
    given = {"budget": 20, "sinks": 2, "window": 4, "ahead": 30}
    kept, (queries, (keys, values)) = kept_by(engine, "expected", given, tokens)
    layer = engine.techniques.layers[1]
    statistics = Queries(layer)
    statistics.add(queries[2:], np.arange(2, 90, dtype=np.int32))
    logits = statistics.expected(90, 30).logits(keys[1])
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    worth = shares.mean(axis=1) * np.linalg.norm(values[1], axis=-1)
    worth[:, :2] = worth[:, 86:] = np.inf
    for head in range(2):
        best = np.sort(np.argsort(-worth[head], kind="stable")[:20])
        assert kept[1, head].tolist() == best.tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ahead": 0}, "ahead must be from 1 to 65536 places, got 0"),
        ({"every": 0}, "every must be from 1"),
        ({"window": 0}, "window must be from 1"),
        ({"budget": 30}, "leaves none to choose beside the first 4 and the latest 32"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(
    tmp_path: Any, given: dict[str, Any], words: str
) -> None:
    engine = make_engine(tiny_llama(tmp_path))
    with pytest.raises(InvalidRequest, match=words):
        engine.add(ask("wrong", [2] * 90, asks={"keep/expected": given}))
    setting = "expected:" + ",".join(f"{name}={value}" for name, value in given.items())
    with pytest.raises(ConfigError, match=words):
        make_engine(tiny_llama(tmp_path), keep=setting)
