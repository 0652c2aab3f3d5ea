"""The suffix automaton and the drafter that copies by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.draft.copying import Copying, CopyingOptions
from ockham.draft.structures.suffix_automaton import Automaton, PlainAutomaton, make_automaton
from ockham.kernels.native import core

TEXTS = st.integers(1, 5).flatmap(
    lambda vocabulary: st.lists(st.integers(0, vocabulary), min_size=1, max_size=90)
)
KINDS = [PlainAutomaton] if core is None else [PlainAutomaton, core.SuffixAutomaton]


def fed(text: list[int], kind: type[Automaton] = PlainAutomaton) -> Automaton:
    automaton = kind()
    automaton.extend(np.asarray(text, np.int32))
    return automaton


def longest_earlier(text: list[int]) -> int:
    """Length of the longest suffix that stands in the text before its end."""
    for length in range(len(text) - 1, 0, -1):
        if any(text[i : i + length] == text[-length:] for i in range(len(text) - length)):
            return length
    return 0


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_the_longest_earlier_suffix_is_found(kind: type[Automaton], text: list[int]) -> None:
    tokens, parents, matched = fed(text, kind).propose(4, 1, 1, 1)
    length = longest_earlier(text)
    assert (matched[0] if matched else 0) == length
    if not length:
        return
    assert parents == [-1, 0, 1, 2]
    whole = text + tokens
    # What is copied followed an earlier place of the match, and may run into the copy itself.
    places = [
        i + length for i in range(len(text) - length) if text[i : i + length] == text[-length:]
    ]
    assert any(whole[p : p + 4] == tokens for p in places)
    assert matched == [length, length + 1, length + 2, length + 3]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, branches=st.integers(1, 4))
def test_side_branches_begin_otherwise_and_after_shorter_matches(
    kind: type[Automaton], text: list[int], branches: int
) -> None:
    tokens, parents, matched = fed(text, kind).propose(5, branches, 2, 1)
    begins = [i for i, parent in enumerate(parents) if parent < 0]
    assert len(begins) <= branches
    assert len({tokens[i] for i in begins}) == len(begins)
    assert [matched[i] for i in begins] == sorted((matched[i] for i in begins), reverse=True)
    lengths = np.diff([*begins, len(tokens)]).tolist()
    assert lengths == [5, *[2] * (len(begins) - 1)][: len(begins)]


@pytest.mark.skipif(core is None, reason="the native core was not built")
@settings(max_examples=200)
@given(text=TEXTS, most=st.integers(1, 9), least=st.integers(1, 4))
def test_the_native_automaton_decides_as_the_plain_one(
    text: list[int], most: int, least: int
) -> None:
    plain, native = PlainAutomaton(), make_automaton()
    for token in text:
        for automaton in (plain, native):
            automaton.extend(np.asarray([token], np.int32))
        found = [
            [list(part) for part in automaton.propose(most, 3, 4, least)]
            for automaton in (plain, native)
        ]
        assert found[0] == found[1]
    assert native.length == plain.length == len(text)
    assert native.bytes > 0


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_lengths_must_be_counts() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        core.SuffixAutomaton().propose(0, 1, 1, 1)


def test_kinds_grow_with_the_match_and_those_that_are_not_worth_it_are_left_out() -> None:
    stream = Copying(CopyingOptions()).open("")
    stream.extend(np.asarray([1, 2, 3, 4, 5, 9, 1, 2, 3], np.int32))
    shares = list(Copying.kinds)
    draft = stream.propose(3, shares, 0.0)
    assert draft is not None
    assert list(draft.tokens) == [4, 5, 9]
    assert list(draft.kinds) == [2, 3, 4]  # matches of 3, 4 and 5 tokens
    assert stream.propose(3, shares, 1.0) is None
    assert stream.propose(3, shares, shares[3]) is None  # the match is too short to be worth it


def test_short_matches_can_be_refused() -> None:
    stream = Copying(CopyingOptions(prompt_lookup_min=4)).open("")
    stream.extend(np.asarray([1, 2, 3, 4, 5, 9, 1, 2, 3], np.int32))
    assert stream.propose(3, list(Copying.kinds), 0.0) is None
    stream.extend(np.asarray([4], np.int32))
    draft = stream.propose(1, list(Copying.kinds), 0.0)
    assert draft is not None
    assert list(draft.tokens) == [5]
