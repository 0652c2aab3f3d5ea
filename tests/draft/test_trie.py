"""The bounded trie and the drafter that goes by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.core.errors import ConfigError
from ockham.core.speculative import parse
from ockham.draft.structures.branch_trie import DEEPEST, PlainTrie, Trie, make_trie
from ockham.draft.structures.learning import LEAST_LEARNED_BYTES
from ockham.draft.trie import TrieDrafter, TrieOptions
from ockham.kernels.native import core

KINDS = list(TrieDrafter.kinds)
needs_core = pytest.mark.skipif(core is None, reason="the native core was not built")


def ints(*tokens: int) -> np.ndarray:
    return np.asarray(tokens, np.int32)


PIECES = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 4), max_size=30)), min_size=1, max_size=12
)


@needs_core
@settings(max_examples=150, deadline=None)
@given(
    pieces=PIECES,
    capacity=st.sampled_from([40, 100, 10_000]),
    most=st.integers(1, 9),
    worth=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_the_native_trie_decides_as_the_plain_one(
    pieces: list[tuple[int, list[int]]], capacity: int, most: int, worth: float
) -> None:
    """Three texts of two tenants, in turn, with and without room for all of them."""
    tries: list[Trie] = [PlainTrie(capacity), core.BranchTrie(capacity)]
    cursors = [[trie.open(tenant) for tenant in (0, 1, 1)] for trie in tries]
    for which, tokens in pieces:
        found = []
        for trie, own in zip(tries, cursors, strict=True):
            trie.extend(own[which], ints(*tokens))
            drafts = [trie.propose(cursor, most, KINDS, worth) for cursor in own]
            found.append([[list(part) for part in draft] for draft in drafts])
        assert found[0] == found[1]
    assert tries[0].records().tolist() == tries[1].records().tolist()
    assert tries[0].size == tries[1].size <= capacity
    again = [PlainTrie(capacity), core.BranchTrie(capacity)]
    for trie in again:
        trie.restore(tries[0].records())
        assert trie.records().tolist() == tries[0].records().tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_counts_are_those_of_the_runs(text: list[int]) -> None:
    trie = make_trie(100_000)
    cursor = trie.open(7)
    trie.extend(cursor, ints(*text))
    runs: list[tuple[int, ...]] = []
    for parent, token, count, _ in trie.records().tolist():
        run = () if parent < 0 else (*runs[parent], token)
        runs.append(run)
        if run:
            starts = range(len(text) - len(run) + 1)
            assert count == sum(tuple(text[i : i + len(run)]) == run for i in starts)
    whole = {tuple(text[i:j]) for i in range(len(text)) for j in range(i, i + DEEPEST + 1)}
    assert set(runs) == whole | {()}


def drafted(drafter: TrieDrafter, text: list[int], most: int = 8, salt: str = "") -> list[int]:
    stream = drafter.open(salt)
    stream.extend(ints(*text))
    draft = stream.propose(most, KINDS, 0.0)
    return [] if draft is None else list(draft.tokens)


def test_what_one_request_brought_is_drafted_for_the_next_one_of_the_tenant() -> None:
    drafter = TrieDrafter(TrieOptions())
    drafter.open("a").extend(ints(*range(100, 130)))
    assert drafted(drafter, [103, 104, 105], salt="a") == list(range(106, 114))
    assert drafted(drafter, [103, 104, 105], salt="b") == []


def test_several_branches_are_drafted_the_likelier_first() -> None:
    drafter = TrieDrafter(TrieOptions())
    for following in (5, 5, 5, 6):
        drafter.open("").extend(ints(1, 2, 3, following, 9))
    stream = drafter.open("")
    stream.extend(ints(1, 2, 3))
    draft = stream.propose(4, KINDS, 0.0)
    assert draft is not None
    begins = [draft.tokens[i] for i, parent in enumerate(draft.parents) if parent < 0]
    assert begins == [5, 6]
    assert stream.propose(4, KINDS, 1.0) is None


def test_what_is_not_used_leaves_and_the_memory_stays_bounded() -> None:
    drafter = TrieDrafter(TrieOptions(learned_bytes=LEAST_LEARNED_BYTES))
    rng = np.random.default_rng(3)
    often = ints(*range(40))
    for _ in range(40):
        drafter.open("").extend(often)
        drafter.open("").extend(rng.integers(50, 30_000, 300).astype(np.int32))
    if core is not None:
        assert drafter.bytes <= LEAST_LEARNED_BYTES
    assert drafted(drafter, [10, 11, 12, 13], most=5) == [14, 15, 16, 17, 18]


def save(file: Path, vocabulary: str = "v") -> None:
    drafter = TrieDrafter(TrieOptions(learned_file=str(file)))
    drafter.recall(lambda: vocabulary)
    drafter.open("a").extend(ints(*range(100, 130)))
    drafter.save()


def test_what_was_learned_is_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "learned"
    save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["learned"]
    drafter = TrieDrafter(TrieOptions(learned_file=str(file)))
    drafter.recall(lambda: "v")
    assert drafted(drafter, [103, 104, 105], salt="a") == list(range(106, 114))
    assert drafted(drafter, [103, 104, 105], salt="b") == []


def test_a_file_of_another_vocabulary_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "learned"
    save(file)
    config = TrieOptions(learned_file=str(file))
    with pytest.raises(ConfigError, match="another vocabulary"):
        TrieDrafter(config).recall(lambda: "w")
    whole = file.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ConfigError, match="damaged"):
            TrieDrafter(config).recall(lambda: "v")
    file.write_bytes(whole[:-3])
    with pytest.raises(ConfigError, match="damaged"):
        TrieDrafter(config).recall(lambda: "v")


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learned_file is a setting of the method trie"):
        parse({"method": "copying", "learned_file": "x"})
    with pytest.raises(ConfigError, match="at least"):
        parse({"method": "trie", "learned_bytes": 5})
    with pytest.raises(ConfigError, match="cannot be written"):
        TrieDrafter(TrieOptions(learned_file=str(tmp_path / "no" / "file")))


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        ([[0, 1, 1, 1]], "out of range"),
        ([[-1, -1, 1, 1]], "out of range"),
        ([[-1, 1, 1, 9]], "out of range"),
        ([[-1, 1, 1, 1], [-1, 1, 1, 1]], "twice"),
        ([[i - 1, 1, 1, 1] for i in range(DEEPEST + 2)], "too long"),
        ([[-1, i, 1, 1] for i in range(200)], "room"),
    ],
)
def test_records_of_no_trie_are_refused(records: list[list[int]], wrong: str) -> None:
    for trie in [PlainTrie(100), *([] if core is None else [core.BranchTrie(100)])]:
        with pytest.raises(ValueError, match=wrong):
            trie.restore(np.asarray(records, np.int32))
