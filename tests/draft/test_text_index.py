"""Texts that are looked up: the native index beside its plain twin, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.core.arrays import Ints
from ockham.draft.structures.text_index import (
    COMPARED,
    PlainTextIndex,
    kind_of,
    kind_shares,
    make_text_index,
    order_of,
)
from ockham.kernels.native import core

native = pytest.mark.skipif(core is None, reason="the native core was not built")
SHARES = kind_shares()


def texts_of(parts: list[list[int]]) -> Ints:
    return np.array([token for part in parts for token in [*part, -1]], np.int32)


texts = st.lists(st.lists(st.integers(0, 3), max_size=60), min_size=1, max_size=4)


@native
@settings(deadline=None)
@given(
    texts,
    st.lists(st.integers(0, 3), max_size=15),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_the_native_index_is_its_plain_twin(
    parts: list[list[int]], last: list[int], most: int, worth: float
) -> None:
    tokens = texts_of(parts)
    order = order_of(tokens)
    expected = sorted(
        range(len(tokens)), key=lambda place: (tokens[place : place + COMPARED].tolist(), place)
    )
    assert order.tolist() == expected
    said = np.array(last, np.int32)
    found = make_text_index(tokens, order).propose(said, most, SHARES, worth)
    assert found == PlainTextIndex(tokens, order).propose(said, most, SHARES, worth)


@pytest.mark.parametrize("made", [make_text_index, PlainTextIndex])
def test_what_followed_is_proposed(made: type[PlainTextIndex]) -> None:
    parts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [8, 2, 3, 9]]
    tokens = texts_of(parts)
    index = made(tokens, order_of(tokens))
    tree = index.propose(np.array([0, 1, 2, 3], np.int32), 9, SHARES, 0.0)
    paths = []
    for number, parent in enumerate(tree[1]):
        path = [tree[0][number]]
        while parent >= 0:
            path.append(tree[0][parent])
            parent = tree[1][parent]
        paths.append(path[::-1])
    # What followed the longest match, and what followed a shorter one that was found more often.
    assert [4] in paths
    assert [4, 5, 6] in paths
    assert [4, 5, 7] in paths
    assert [9] in paths
    assert index.propose(np.array([7, 7], np.int32), 9, SHARES, 0.0) == ([], [], [])
    assert index.propose(np.array([3], np.int32), 9, SHARES, 0.0) == ([], [], [])


def test_nothing_goes_on_from_one_text_into_the_next() -> None:
    tokens = texts_of([[1, 2, 3], [4, 5, 6]])
    index = make_text_index(tokens, order_of(tokens))
    assert index.propose(np.array([2, 3], np.int32), 9, SHARES, 0.0) == ([], [], [])


def test_kinds_are_told_apart() -> None:
    every = {
        kind_of(length, total, count)
        for length in (2, 5, 9)
        for total in (1, 3, 10, 100)
        for count in range(1, total + 1)
    }
    assert max(every) == len(SHARES) - 1
    assert kind_of(9, 100, 90) > kind_of(9, 100, 30)
    assert all(0.0 < share < 1.0 for share in SHARES)


@native
def test_an_index_that_does_not_add_up_is_refused() -> None:
    tokens = texts_of([[1, 2, 3]])
    with pytest.raises(ValueError, match="orders each"):
        core.TextIndex(tokens, order_of(tokens)[:2].copy())
    with pytest.raises(ValueError, match="beyond"):
        core.TextIndex(tokens, np.full(4, 9, np.int32))
