"""Heads and layers that keep different numbers of cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ockham.cache.state import State, View
from ockham.core import asks, registry
from ockham.core.arrays import Ints
from ockham.core.errors import OckhamError
from ockham.core.seams import AttentionGroup, Keeping, KeptText, SequencePattern
from ockham.core.visits import BLOCK_KEYS, BlockVisits
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.kernels.base import Backend
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import serving
from tests.helpers.registering import let_register
from tests.helpers.serving import ask, drain, tokens_of
from tests.helpers.tiny import tiny_llama

LAYERS, HEADS, PAGE, LONGEST, BORDER = 2, 2, 16, 512, 128
WINDOWS = np.array([[1, 3], [2, 1]])
"""The blocks before a border that each head of each layer keeps, beside the first."""


@pytest.fixture(params=["cpu", "reference"])
def state(request: Any) -> State:
    backend: Backend = CpuBackend(1) if request.param == "cpu" else ReferenceBackend()
    groups = (GroupLayout((0, 1), StateSpec.attention(HEADS, 2, "float32"), 40, PAGE),)
    return State(backend.allocate(groups), groups, LONGEST, "bits")


def append(state: State, view: View, count: int) -> None:
    """Compute tokens whose state is their place, in each layer and head as it is."""
    first = view.tokens
    assert state.reserve(view, first + count)
    places = np.arange(first, first + count)
    whole = np.empty(state.groups[0].stored_shape(count), np.float32)
    whole[:] = places[None, None, :, None, None]
    state.planes.write(0, state.slots(view, 0, places), whole)
    state.advance(view, first + count)


def held(state: State, view: View) -> list[list[list[int]]]:
    """What each head of each layer holds, its gap left out."""
    group = view.groups[0]
    slots = state.pools[0].slots(group, np.arange(group.length))
    stored = state.planes.read(0, slots)
    assert (stored[:, :1] == stored).all(), "keys and values differ"
    gaps = np.zeros((LAYERS, HEADS), int) if group.gaps is None else group.gaps
    return [
        [stored[layer, 0, gaps[layer, head] :, head, 0].tolist() for head in range(HEADS)]
        for layer in range(LAYERS)
    ]


def with_gaps(kept: Sequence[Sequence[Sequence[int]]]) -> Ints:
    longest = max(len(each) for of_layer in kept for each in of_layer)
    rows = [[[-1] * (longest - len(each)) + list(each) for each in of_layer] for of_layer in kept]
    return np.array(rows, np.int32)


def test_each_head_of_each_layer_keeps_its_own_cells(state: State) -> None:
    view = state.new_view()
    append(state, view, 200)
    twin = state.fork(view)
    kept = [[range(130), range(100, 166)], [range(60, 190), [7, *range(60, 189)]]]
    assert state.compact(view, {0: with_gaps(kept)})
    assert held(state, view) == [[list(each) for each in of_layer] for of_layer in kept]
    assert held(state, twin) == [[list(range(200))] * HEADS] * LAYERS
    assert view.groups[0].gaps is not None
    assert view.groups[0].gaps.tolist() == [[0, BLOCK_KEYS], [0, 0]]
    append(state, view, 30)
    grown = [[[*each, *range(200, 230)] for each in of_layer] for of_layer in kept]
    assert held(state, view) == grown
    places = view.groups[0].places(view.tokens)
    assert [places[i, j][places[i, j] >= 0].tolist() for i in range(2) for j in range(2)] == [
        each for of_layer in grown for each in of_layer
    ]
    # Once more, from what is uneven to what is even.
    again = np.array([[range(5, 25)] * 2, [range(70, 90), range(64, 84)]], np.int32)
    again[0, 1] += BLOCK_KEYS
    assert state.compact(view, {0: again})
    assert view.groups[0].gaps is None
    assert held(state, view)[0][1] == grown[0][1][5:25]
    assert held(state, view)[1] == [grown[1][0][70:90], grown[1][1][64:84]]
    state.check_integrity([view, twin])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (np.zeros((3, HEADS, 2), np.int32), r"\(2, 2, n\)"),
        (np.full((LAYERS, HEADS, BLOCK_KEYS), -1, np.int32), "whole blocks"),
        (with_gaps([[range(5), range(4)], [range(5), range(5)]]), "whole blocks"),
        (np.array([[[5, -1]] * HEADS] * LAYERS, np.int32), "100 that are held"),
    ],
)
def test_wrong_gaps_are_an_error(state: State, cells: Ints, words: str) -> None:
    view = state.new_view()
    append(state, view, 100)
    with pytest.raises(OckhamError, match=words):
        state.compact(view, {0: cells})


def test_a_head_keeps_no_cell_of_its_gap(state: State) -> None:
    view = state.new_view()
    append(state, view, 100)
    whole, short = range(70), range(6)
    assert state.compact(view, {0: with_gaps([[whole, short], [whole, whole]])})
    with pytest.raises(OckhamError, match="dropped before"):
        state.compact(view, {0: np.array([60, 69], np.int32)})


class Uneven(Keeping):
    """The first block stays, and those before the border that `WINDOWS` says."""

    name = "uneven"

    def border(self, tokens: int) -> int:
        return max(tokens // BORDER + 1, 3) * BORDER

    def most_cells(self, tokens: int) -> int:
        return tokens

    def keep(self, group: int, places: Ints) -> Ints:
        last = int(places.reshape(-1)[-1]) + 1
        wide = np.broadcast_to(places, (LAYERS, HEADS, places.shape[-1]))
        kept = [
            [
                np.flatnonzero(
                    ((own >= 0) & (own < BLOCK_KEYS)) | (own >= last - blocks * BLOCK_KEYS)
                ).tolist()
                for own, blocks in zip(of_layer, windows, strict=True)
            ]
            for of_layer, windows in zip(wide, WINDOWS, strict=True)
        ]
        return with_gaps(kept)


class SameBlocks(SequencePattern):
    """The blocks that `Uneven` leaves, of a state that holds all."""

    def visits(self, group: int, block: int) -> BlockVisits | None:
        border = block * BLOCK_KEYS // BORDER * BORDER // BLOCK_KEYS
        if border * BLOCK_KEYS < 3 * BORDER:
            return None
        lists = tuple(
            np.array([0, *range(border - blocks, block + 1)], np.int32)
            for blocks in WINDOWS.reshape(-1).tolist()
        )
        return BlockVisits(lists, np.arange(len(lists), dtype=np.int32).reshape(WINDOWS.shape))


@pytest.fixture
def engine_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    let_register(monkeypatch)

    @registry.register("keep", "uneven", exact=False)
    class UnevenKeep:
        name: ClassVar[str] = "uneven"
        Ask: ClassVar[type[asks.Ask]] = asks.Ask

        def open(self, ask: asks.Ask, text: KeptText) -> Keeping:
            return Uneven()

    @registry.register("pattern", "same", exact=False)
    class SamePattern:
        name: ClassVar[str] = "same"
        Ask: ClassVar[type[asks.Ask]] = asks.Ask

        def open(self, ask: asks.Ask, groups: Sequence[AttentionGroup]) -> SequencePattern:
            return SameBlocks()

    checkpoint = tiny_llama(tmp_path)

    def make(**settings: Any) -> Engine:
        values = {"max_model_len": LONGEST, "block_size": 8, "speculative_config": "none"}
        return serving.make_engine(checkpoint, **{**values, **settings})

    return make


def wanted() -> list[Request]:
    """As the engine is set, and with all cells that are held and all blocks that are visited."""
    rng = np.random.default_rng(5)
    ways: list[dict[str, Any]] = [{}, {"keep/all": True, "pattern/full": True}]
    return [
        ask(
            str(number),
            rng.integers(2, 97, length).tolist(),
            asks=ways[number % 2],
            max_tokens=140,
            temperature=0.7 * (number % 3),
            seed=number,
        )
        for number, length in enumerate((370, 330, 300, 64, 260))
    ]


def run(engine: Engine) -> tuple[dict[Any, list[int]], list[Delta]]:
    for request in wanted():
        engine.add(request)
    deltas: list[Delta] = []
    for step in range(200):
        if step in (40, 90) and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        deltas += engine.step()
    deltas += drain(engine)
    return tokens_of(deltas), deltas


def test_rows_see_bit_for_bit_what_their_heads_kept(engine_of: Any) -> None:
    """Tokens are those of a state that holds all, of which the same blocks are visited."""
    whole = engine_of(reuse="none", attention_pattern="same", max_num_batched_tokens=LONGEST)
    expected, _ = run(whole)
    plain, _ = run(engine_of(reuse="none"))
    assert plain != expected
    ways: list[dict[str, Any]] = [
        {},
        {"max_num_batched_tokens": 29},
        {"block_size": 64, "threads": 1},
    ]
    for settings in ways:
        found, deltas = run(engine_of(keep="uneven", **settings))
        assert found == expected
        bills = {d.request_id: d.ledger for d in deltas if d.ledger is not None}
        assert bills["0"].saved["uneven"].flops > 0
        assert "uneven" not in bills["1"].saved
