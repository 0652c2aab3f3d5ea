"""Cells that go on in others when they are dropped: what the state holds then, and what is like
what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.cache.keep.merging import AT_ONCE, Pairs, directions, nearest
from ockham.cache.state import State, View
from ockham.core.arrays import Array
from ockham.core.errors import OckhamError
from ockham.core.seams import Merges
from ockham.kernels.base import Backend
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.planes import ReferencePlanes, sides

PAGE, LAYERS, HEADS, WIDTH, CELLS, PAGES = 4, 2, 2, 8, 22, 16
DTYPES = ("float32", "bfloat16", "int8", "int4", "k=int8,v=int4")
BACKENDS: list[Backend] = [ReferenceBackend(), CpuBackend(1)]


def filled(backend: Backend, dtype: str, seed: int = 0, pages: int = PAGES) -> tuple[State, View]:
    """A view of CELLS cells of numbers drawn at random."""
    groups = (
        GroupLayout((0, 3), StateSpec.attention(HEADS, WIDTH, dtype), pages, PAGE),
        GroupLayout((1,), StateSpec.attention(HEADS, WIDTH, dtype, 6), pages, PAGE),
    )
    state = State(backend.allocate(groups), groups, 64, "bits")
    view = state.new_view()
    assert state.reserve(view, CELLS)
    rng = np.random.default_rng(seed)
    for group, layout in enumerate(groups):
        stored = np.zeros(layout.stored_shape(CELLS), layout.spec.uniform.stored)
        for of_layer in stored:
            for side in sides(of_layer, layout.spec.planes):
                rows = rng.standard_normal((CELLS, HEADS, WIDTH), np.float32)
                side.stored[...] = side.codec.store(rows)
        slots = state.slots(view, group, np.arange(CELLS, dtype=np.int32))
        state.planes.write(group, slots, stored)
    state.advance(view, CELLS)
    return state, view


def stored(state: State, view: View) -> list[list[Array]]:
    """Of each layer of the first group its keys and values as stored, (cells, heads, items)."""
    held = view.groups[0]
    slots = state.pools[0].slots(held, np.arange(held.length))
    planes = state.groups[0].spec.planes
    return [[side.stored for side in sides(layer, planes)] for layer in state.planes.read(0, slots)]


def merges(*pairs: tuple[int, int, int, int, float], keys: bool = False) -> Merges:
    """Pairs of (layer, head, dropped, into, weight)."""
    layers, heads, dropped, into, weights = zip(*pairs, strict=True)
    numbers = [np.array(each, np.int32) for each in (layers, heads, dropped, into)]
    return Merges(*numbers, np.array(weights, np.float32), keys)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), backend=st.sampled_from(BACKENDS))
def test_a_cell_becomes_the_weighted_mean_and_all_others_keep_their_bits(
    data: st.DataObject, dtype: str, backend: Backend
) -> None:
    state, view = filled(backend, dtype, data.draw(st.integers(0, 100)))
    before = stored(state, view)
    apart = data.draw(st.sampled_from([(), (HEADS,), (LAYERS, HEADS)]))
    count = data.draw(st.integers(1, CELLS - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    chosen = [np.sort(rng.permutation(CELLS)[:count]) for _ in range(int(np.prod(apart)))]
    cells = np.array(chosen, np.int32).reshape(*apart, count)
    wide = np.broadcast_to(cells, (LAYERS, HEADS, count))
    pairs = []
    for layer, head in np.ndindex(LAYERS, HEADS):
        gone = np.setdiff1d(np.arange(CELLS), wide[layer, head])
        for cell in gone[rng.random(len(gone)) < 0.6]:
            pairs.append((layer, head, int(cell), int(rng.integers(count)), float(rng.random())))
    if not pairs:
        return
    keys = data.draw(st.booleans())
    assert state.compact(view, {0: cells}, {0: merges(*pairs, keys=keys)})
    state.check_integrity([view])
    after, planes = stored(state, view), state.groups[0].spec.planes
    codecs = [side.codec for side in sides(state.planes.read(0, np.zeros(1, np.int64))[0], planes)]
    for layer, head, new in np.ndindex(LAYERS, HEADS, count):
        own = [pair for pair in pairs if pair[:2] == (layer, head) and pair[3] == new]
        for plane, codec in enumerate(codecs):
            row = before[layer][plane][wide[layer, head, new], head]
            if own and (keys or plane == 1):
                total = codec.widen(row[None])[0].astype(np.float64)
                for _, _, gone, _, weight in own:
                    other = codec.widen(before[layer][plane][gone, head][None])[0].astype(
                        np.float64
                    )
                    total += float(np.float32(weight)) * other
                mean = total / (1.0 + sum(float(np.float32(pair[4])) for pair in own))
                row = codec.store(mean.astype(np.float32)[None])[0]
            assert np.array_equal(after[layer][plane][new, head], row)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_another_view_holds_is_copied_before_it_is_merged_into(backend: Backend) -> None:
    state, view = filled(backend, "bfloat16")
    twin = state.fork(view)
    before = stored(state, twin)
    cells = np.arange(CELLS - 1, dtype=np.int32)  # none of which moves
    assert state.compact(view, {0: cells}, {0: merges((0, 0, CELLS - 1, 5, 1.0))})
    state.check_integrity([view, twin])
    after = stored(state, twin)
    assert all(np.array_equal(*both) for both in zip(before[0], after[0], strict=True))
    assert not np.array_equal(stored(state, view)[0][1][5], before[0][1][5])
    assert view.groups[0].table[0] == twin.groups[0].table[0], "nothing goes on in its first cells"


def test_a_merge_for_which_pages_are_short_changes_nothing() -> None:
    state, view = filled(BACKENDS[0], "bfloat16", pages=7)
    twin = state.fork(view)
    before = stored(state, view)
    cells = np.arange(CELLS - 1, dtype=np.int32)
    assert not state.compact(view, {0: cells}, {0: merges((0, 0, CELLS - 1, 0, 1.0))})
    state.check_integrity([view, twin])
    assert view.groups[0].length == CELLS
    assert np.array_equal(stored(state, view)[0][1], before[0][1])


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ((2, 0, 20, 1, 1.0), "layers of merged cells must be from 0 to 1"),
        ((0, 2, 20, 1, 1.0), "heads of merged cells must be from 0 to 1"),
        ((0, 0, 22, 1, 1.0), "dropped of merged cells must be from 0 to 21"),
        ((0, 0, 20, 10, 1.0), "into of merged cells must be from 0 to 9"),
        ((0, 0, 20, 1, -1.0), "weights of merged cells"),
        ((0, 0, 20, 1, float("nan")), "weights of merged cells"),
        ((0, 0, 3, 1, 1.0), "a cell that stays cannot go on in another"),
    ],
)
def test_merges_that_make_no_sense_are_refused(pair: Any, words: str) -> None:
    state, view = filled(BACKENDS[0], "float32")
    with pytest.raises(OckhamError, match=words):
        state.compact(view, {0: np.arange(10, dtype=np.int32)}, {0: merges(pair)})
    assert view.groups[0].length == CELLS


def test_the_nearest_has_the_largest_cosine() -> None:
    rng = np.random.default_rng(3)
    of = rng.standard_normal((AT_ONCE + 9, WIDTH), np.float32)
    among = rng.standard_normal((5, WIDTH), np.float32)
    among = np.concatenate((among, 2 * among))
    match, cosines = nearest(directions(of), directions(among))
    exact = of @ among.T / np.linalg.norm(of, axis=1)[:, None] / np.linalg.norm(among, axis=1)
    assert np.allclose(cosines, exact.max(axis=1), atol=1e-5)
    assert np.array_equal(match % 5, exact[:, :5].argmax(axis=1))
    assert not directions(np.zeros((1, WIDTH), np.float32)).any()


def test_pairs_that_are_none_merge_nothing() -> None:
    pairs = Pairs()
    assert pairs.merges("both") is None
    pairs.add(1, 0, np.array([4, 5]), np.array([0, 2]), np.array([0.5, 1.0]))
    assert pairs.merges("none") is None
    found = pairs.merges("both")
    assert found is not None
    assert found.keys
    assert (found.layers.tolist(), found.dropped.tolist()) == ([1, 1], [4, 5])


def test_keys_that_are_held_reflected_are_read_as_they_are() -> None:
    rng = np.random.default_rng(4)
    mirrors = rng.standard_normal((1, HEADS, WIDTH), np.float32)
    mirrors *= np.sqrt(2) / np.linalg.norm(mirrors, axis=-1, keepdims=True)
    layout = GroupLayout((0,), StateSpec.attention(HEADS, WIDTH, "int4"), PAGES, PAGE, mirrors)
    planes = ReferenceBackend().allocate((layout,))
    state = State(planes, (layout,), 64, "bits")
    view = state.new_view()
    assert state.reserve(view, CELLS)
    keys = rng.standard_normal((CELLS, HEADS, WIDTH), np.float32)
    slots = state.slots(view, 0, np.arange(CELLS, dtype=np.int32))
    assert isinstance(planes, ReferencePlanes)
    planes.store(0, slots, keys, keys)
    state.advance(view, CELLS)
    found, _ = state.held(view, 0).read(0, CELLS)
    assert found.shape == (1, HEADS, CELLS, WIDTH)
    assert np.abs(found[0].swapaxes(0, 1) - keys).max() < 0.5
