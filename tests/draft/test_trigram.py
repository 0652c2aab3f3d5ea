"""Counts of three tokens in a row and the drafter that searches them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.draft.structures.learning import LEAST_LEARNED_BYTES, LearningOptions
from ockham.draft.structures.trigrams import PlainTrigrams, Trigrams
from ockham.draft.trigram import Trigram
from ockham.kernels.native import core

KINDS = list(Trigram.kinds)
TEXTS = st.integers(1, 9).flatmap(
    lambda vocabulary: st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, vocabulary), min_size=1, max_size=90)),
        min_size=1,
        max_size=6,
    )
)


def ints(*tokens: int) -> np.ndarray:
    return np.asarray(tokens, np.int32)


@pytest.mark.skipif(core is None, reason="the native core was not built")
@settings(max_examples=200, deadline=None)
@given(
    texts=TEXTS,
    capacity=st.sampled_from([5, 20, 1000]),
    most=st.integers(1, 12),
    worth=st.sampled_from([0.0, 0.03, 0.2]),
)
def test_the_native_counts_decide_as_the_plain_ones(
    texts: list[tuple[int, list[int]]], capacity: int, most: int, worth: float
) -> None:
    both: list[Trigrams] = [PlainTrigrams(capacity), core.Trigrams(capacity)]
    for tenant, text in texts:
        found = []
        for counts in both:
            counts.extend(tenant, ints(*text), len(text) % 3)
            drafts = [
                counts.propose(who, before, text[-1], most, KINDS, worth)
                for who in (0, 1)
                for before in (-1, *text[-2:-1])
            ]
            found.append([[list(part) for part in draft] for draft in drafts])
        assert found[0] == found[1]
        assert both[0].size == both[1].size <= capacity


def drafted(drafter: Trigram, text: list[int], most: int = 4, salt: str = "") -> list[int]:
    stream = drafter.open(salt)
    stream.extend(ints(*text))
    draft = stream.propose(most, KINDS, 0.0)
    return [] if draft is None else list(draft.tokens)


def test_what_followed_two_tokens_is_drafted_before_what_followed_one() -> None:
    drafter = Trigram(LearningOptions())
    for _ in range(3):
        drafter.open("a").extend(ints(1, 2, 3, 4))
    drafter.open("a").extend(ints(7, 2, 5))
    assert drafted(drafter, [1, 2], salt="a")[0] == 3
    assert set(drafted(drafter, [7, 2], salt="a")[:2]) == {5, 3}
    assert drafted(drafter, [1, 2], salt="b") == []


def test_a_text_in_pieces_counts_as_the_whole() -> None:
    whole, pieces = Trigram(LearningOptions()), Trigram(LearningOptions())
    text = [1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2]
    stream = pieces.open("")
    for token in text:
        stream.extend(ints(token))
    piecewise, at_once = stream.propose(9, KINDS, 0.0), whole.open("")
    at_once.extend(ints(*text))
    assert piecewise == at_once.propose(9, KINDS, 0.0)


def test_counts_adapt() -> None:
    """What came often is overtaken by what comes now, because old counts are halved."""
    drafter = Trigram(LearningOptions())
    for _ in range(500):
        drafter.open("").extend(ints(1, 2, 3))
    assert drafted(drafter, [1, 2])[0] == 3
    for _ in range(60):
        drafter.open("").extend(ints(1, 2, 4))
    assert drafted(drafter, [1, 2])[0] == 4


def test_the_search_explores_beside_what_is_likeliest() -> None:
    drafter = Trigram(LearningOptions())
    for following in (3, 3, 3, 4, 4, 5):
        drafter.open("").extend(ints(1, 2, following, 8, 9))
    stream = drafter.open("")
    stream.extend(ints(1, 2))
    draft = stream.propose(8, KINDS, 0.0)
    assert draft is not None
    begins = [draft.tokens[i] for i, parent in enumerate(draft.parents) if parent < 0]
    assert {3, 4, 5} <= set(begins)
    assert max(draft.parents) > 0
    assert stream.propose(8, KINDS, 1.0) is None


def test_the_memory_is_bounded() -> None:
    if core is None:
        pytest.skip("the native core was not built")
    drafter = Trigram(LearningOptions(learned_bytes=LEAST_LEARNED_BYTES))
    rng = np.random.default_rng(1)
    drafter.open("").extend(rng.integers(0, 100_000, 100_000).astype(np.int32))
    assert drafter.bytes <= LEAST_LEARNED_BYTES
