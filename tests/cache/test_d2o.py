"""`d2o`: budgets by layer, and what a dropped cell goes on in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.cache.keep.budgets import BudgetKeeping
from ockham.cache.keep.d2o import layer_shares, whole_steps
from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import make, make_asks
from ockham.core.seams import AttentionGroup, KeptText, OwnRows, Seen
from tests.helpers.serving import ask, complete, make_engine
from tests.helpers.tiny import tiny_llama

LAYERS, HEADS, TOKENS = 4, 2, 400


class Held:
    """Keys and values of a text, as a rule reads them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.keys = rng.standard_normal((LAYERS, HEADS, TOKENS, 8), np.float32)

    def read(self, first: int, last: int) -> tuple[Floats, Floats]:
        return self.keys[:, :, first:last], self.keys[:, :, first:last]


def keeping_of(**given: Any) -> BudgetKeeping:
    text = KeptText(TOKENS, (AttentionGroup(tuple(range(LAYERS)), HEADS, None),), 8)
    (asked,) = make_asks({"keep/d2o": given}).values()
    found: BudgetKeeping = make("keep", "d2o").open(asked, text)
    return found


def look(keeping: BudgetKeeping, totals: dict[int, Any]) -> None:
    """Show a rule what all rows of the text have looked at."""
    none: Any = np.empty(0)
    own = OwnRows(np.zeros(TOKENS, np.int32), np.arange(TOKENS, dtype=np.int32), 0)
    shown = {layer: [sums] for layer, sums in totals.items()}
    keeping.saw(own, Seen(False, none, none, none, {}, {}, totals=shown))


def looked_at(seed: int = 0) -> dict[int, Any]:
    """The deeper the layer, the fewer cells it looks at."""
    rng = np.random.default_rng(seed)
    found = {layer: rng.random((HEADS, TOKENS)) ** (1 + 4 * layer) for layer in range(LAYERS)}
    return {layer: TOKENS * sums / sums.sum(axis=1)[:, None] for layer, sums in found.items()}


def test_a_layer_that_looks_at_many_cells_gets_more_than_one_that_looks_at_few() -> None:
    even, sharp = np.full((HEADS, 50), 0.02), np.zeros((HEADS, 50))
    sharp[:, 7] = 1.0
    half = (even + sharp) / 2
    shares = layer_shares(np.stack((even, half, sharp)), np.ones((3, HEADS, 50), bool))
    density = np.array([each.var(axis=1).mean() for each in (even, half, sharp)])
    scaled = (density - density.min()) / np.ptp(density)
    assert np.allclose(shares, 3 * np.exp(-scaled) / np.exp(-scaled).sum())
    assert shares[0] > shares[1] > shares[2]


def test_a_gap_is_no_cell_of_a_layer() -> None:
    totals = np.random.default_rng(0).random((3, HEADS, 50)) ** 2
    held = np.ones((3, HEADS, 50), bool)
    held[..., :9] = False
    totals[..., :9] = 1000.0
    assert np.allclose(layer_shares(totals, held), layer_shares(totals[..., 9:], held[..., 9:]))


def test_steps_are_whole_and_have_the_same_sum() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        steps = rng.normal(0, 2, int(rng.integers(1, 9)))
        steps -= steps.mean()
        whole = whole_steps(steps)
        assert whole.sum() == 0
        assert (np.abs(whole - steps) < 1).all()
    assert whole_steps(np.zeros(3)).tolist() == [0, 0, 0]


def test_layers_keep_different_numbers_of_cells_and_as_many_as_the_budget_in_all() -> None:
    keeping = keeping_of(budget=200, merge="none", layered=True)
    look(keeping, looked_at())
    places: Ints = np.arange(TOKENS, dtype=np.int32)
    kept = keeping.reduce(0, places, Held(0))
    assert kept is not None
    counts = (kept.cells >= 0).sum(axis=-1)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert counts.sum() == 200 * LAYERS * HEADS
    assert (np.diff(counts[:, 0]) <= 0).all()
    assert counts[0, 0] > counts[-1, 0]
    assert kept.cells.shape[-1] <= keeping.most_cells(TOKENS) <= TOKENS
    assert (kept.cells[..., -100:] == np.arange(300, 400)).all()
    for of_layer in kept.cells:
        for own in of_layer:
            assert own[own >= 0][:4].tolist() == [0, 1, 2, 3]
    even = keeping_of(budget=200, merge="none")
    look(even, looked_at())
    found = even.reduce(0, places, Held(0))
    assert found is not None
    assert found.cells.shape == (LAYERS, HEADS, 200)


def test_what_is_like_enough_goes_on_in_the_nearest_cell_that_stays() -> None:
    keeping = keeping_of(budget=150, layered=True)
    look(keeping, looked_at())
    held, places = Held(1), np.arange(TOKENS, dtype=np.int32)
    kept = keeping.reduce(0, places, held)
    assert kept is not None
    assert kept.merges is not None
    found: dict[tuple[int, int, int], tuple[int, float]] = {}
    for layer, head, gone, into, weight in zip(
        kept.merges.layers,
        kept.merges.heads,
        kept.merges.dropped,
        kept.merges.into,
        kept.merges.weights,
        strict=True,
    ):
        found[layer, head, gone] = int(kept.cells[layer, head, into]), float(weight)
    expected: dict[tuple[int, int, int], tuple[int, float]] = {}
    for layer, head in np.ndindex(LAYERS, HEADS):
        own = kept.cells[layer, head]
        stays = own[own >= 4]  # nothing goes on in the first cells
        gone = np.setdiff1d(places, own)
        keys = held.keys[layer, head].astype(np.float64)
        keys /= np.linalg.norm(keys, axis=1)[:, None]
        cosines = keys[gone] @ keys[stays].T
        for cell, of_cell in zip(gone, cosines, strict=True):
            if of_cell.max() >= cosines.max(axis=1).mean():
                expected[layer, head, cell] = int(stays[of_cell.argmax()]), of_cell.max()
    assert found.keys() == expected.keys()
    assert all(found[key][0] == expected[key][0] for key in found)
    assert np.allclose([found[key][1] for key in found], [expected[key][1] for key in found])
    assert not kept.merges.keys


def test_the_threshold_remembers_earlier_borders_and_a_retry_does_not() -> None:
    keeping = keeping_of(budget=150)
    look(keeping, looked_at())
    places: Ints = np.arange(TOKENS, dtype=np.int32)
    kept, again = (keeping.reduce(0, places, Held(1)) for _ in range(2))
    assert kept is not None
    assert again is not None
    assert kept.merges is not None
    assert again.merges is not None
    assert np.array_equal(kept.merges.dropped, again.merges.dropped)
    twin = keeping.fork(TOKENS)
    assert twin is not None
    keeping.dropped({0: kept.cells}, TOKENS)
    keeping.totals.clear()
    look(keeping, looked_at())
    # Of other keys the mean is another, and the threshold lies between both.
    other = keeping.reduce(0, places, Held(2))
    keeping_of_other = keeping.fresh()
    assert isinstance(keeping_of_other, BudgetKeeping)
    look(keeping_of_other, looked_at())
    fresh = keeping_of_other.reduce(0, places, Held(2))
    assert other is not None
    assert fresh is not None
    assert other.merges is not None
    assert fresh.merges is not None
    assert len(other.merges.dropped) != len(fresh.merges.dropped)
    same = twin.reduce(0, places, Held(1))
    assert same is not None
    assert same.merges is not None
    assert np.array_equal(same.merges.dropped, kept.merges.dropped)


def test_state_of_every_type_is_merged_alike_in_any_batch(tmp_path: Path) -> None:
    prompt = np.random.default_rng(0).integers(2, 97, 90).tolist()
    for dtype in ("bfloat16", "int8", "k=int8,v=int4"):
        said = []
        for rows in (7, 64):
            engine = make_engine(
                tiny_llama(tmp_path),
                block_size=4,
                speculative_config="none",
                kv_cache_dtype=dtype,
                max_num_batched_tokens=rows,
            )
            requests = [
                ask(merge, prompt, asks={"keep/d2o": {"budget": 16, "merge": merge}}, max_tokens=20)
                for merge in ("none", "values", "both")
            ]
            said.append(complete(engine, requests))
        assert said[0] == said[1]


@pytest.mark.parametrize(
    ("given", "setting", "words"),
    [
        ({"recent": 1.0}, "recent", "recent must be a share"),
        ({"memory": 1.0}, "memory", "memory must be from 0 to below 1"),
        ({"merge": "keys"}, None, "merge"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], setting: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        make_asks({"keep/d2o": given})
    if setting is not None:
        assert caught.value.param == f"d2o.{setting}"
    name, value = next(iter(given.items()))
    with pytest.raises(ConfigError, match=words):
        make("keep", f"d2o:{name}={value}")


@pytest.mark.filterwarnings("error")
def test_a_head_that_drops_nothing_goes_on_merging_later() -> None:
    keeping = keeping_of(budget=128, block=64, sinks=2)
    places = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (LAYERS, HEADS, TOKENS)).copy()
    uneven = places.copy()
    uneven[0, 0, : TOKENS - 128] = -1
    look(keeping, looked_at())
    first = keeping.reduce(0, uneven, Held(0))
    assert first is not None
    keeping.dropped({0: first.cells}, TOKENS)
    look(keeping, looked_at(1))
    second = keeping.reduce(0, places, Held(1))
    assert second is not None
    assert second.merges is not None
    rows = second.merges.layers * HEADS + second.merges.heads
    assert set(rows.tolist()) == set(range(LAYERS * HEADS))
