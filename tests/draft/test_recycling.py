"""The matrix of likely tokens and the drafter that searches it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.core.arrays import Ints
from ockham.core.seams import DraftStream, OwnRows, Seen
from ockham.draft.recycling import Recycling
from ockham.draft.structures.adjacency import WIDTH, Adjacency, PlainAdjacency
from ockham.draft.structures.learning import LEAST_LEARNED_BYTES, LearningOptions
from ockham.kernels.native import core

KINDS = list(Recycling.kinds)
NO_LOGITS = np.empty((0, 0), np.float32)
TOKENS = st.integers(0, 5)
ROWS = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, unique=True, max_size=WIDTH)), min_size=1, max_size=5
)
STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(st.lists(TOKENS, min_size=1, max_size=12), ROWS)),
    min_size=1,
    max_size=12,
)


def ints(*tokens: int) -> np.ndarray:
    return np.asarray(tokens, np.int32)


def row(*tokens: int) -> np.ndarray:
    return np.asarray([[*tokens, *[-1] * (WIDTH - len(tokens))]], np.int32)


@pytest.mark.skipif(core is None, reason="the native core was not built")
@settings(max_examples=200)
@given(
    steps=STEPS,
    capacity=st.sampled_from([3, 7, 1000]),
    most=st.integers(1, 12),
    worth=st.sampled_from([0.0, 0.03, 0.2]),
)
def test_the_native_matrix_decides_as_the_plain_one(
    steps: list[tuple[int, list]], capacity: int, most: int, worth: float
) -> None:
    both: list[Adjacency] = [PlainAdjacency(capacity), core.Adjacency(capacity)]
    for tenant, step in steps:
        found = []
        for matrix in both:
            if isinstance(step[0], int):
                matrix.extend(tenant, ints(*step))
            else:
                rows = np.concatenate([row(*best) for _, best in step])
                matrix.observe(tenant, ints(*(token for token, _ in step)), rows)
            drafts = [
                matrix.propose(who, token, most, KINDS, worth)
                for who in (0, 1)
                for token in range(6)
            ]
            found.append([[list(part) for part in draft] for draft in drafts])
        assert found[0] == found[1]
        assert both[0].size == both[1].size <= capacity


def observe(stream: DraftStream, tokens: Ints, candidates: Ints) -> None:
    rows = np.arange(len(tokens), dtype=np.int32)
    stream.saw(OwnRows(tokens, rows, len(rows)), Seen(False, rows, candidates, NO_LOGITS, {}, {}))


def test_what_was_likely_is_drafted_and_searched_by_its_chances() -> None:
    stream = Recycling(LearningOptions()).open("")
    stream.extend(ints(1))
    observe(stream, ints(1, 2, 3), np.concatenate([row(2, 3), row(4, 5), row(6)]))
    draft = stream.propose(5, [0.5, 0.3, *KINDS[2:8], 0.5, 0.3, *KINDS[10:]], 0.0)
    assert draft is not None
    assert list(draft.tokens) == [2, 3, 4, 5, 6]  # chances of 0.5, 0.3, 0.25, 0.15 and 0.15
    assert list(draft.parents) == [-1, -1, 0, 0, 1]
    assert list(draft.kinds) == [0, 1, WIDTH, WIDTH + 1, WIDTH]
    assert stream.propose(5, KINDS, 1.0) is None


def test_what_a_prompt_goes_on_with_comes_first() -> None:
    drafter = Recycling(LearningOptions())
    stream = drafter.open("a")
    observe(stream, ints(1), row(8, 9))
    stream.extend(ints(1))
    stream.extend(ints(7, 1))
    draft = stream.propose(3, [0.9, 0.8, 0.7, *KINDS[3:8], *[0.0] * 8], 0.1)
    assert draft is not None
    assert list(draft.tokens) == [7, 8, 9]
    other = drafter.open("b")
    other.extend(ints(1))
    assert other.propose(3, KINDS, 0.0) is None


def test_the_memory_is_bounded_and_small() -> None:
    if core is None:
        pytest.skip("the native core was not built")
    drafter = Recycling(LearningOptions(learned_bytes=LEAST_LEARNED_BYTES))
    rng = np.random.default_rng(1)
    drafter.open("").extend(rng.integers(0, 100_000, 200_000).astype(np.int32))
    assert drafter.bytes <= LEAST_LEARNED_BYTES
    whole = Recycling(LearningOptions())
    whole.open("").extend(np.arange(32_000, dtype=np.int32))
    assert whole.bytes < 2.2e6
