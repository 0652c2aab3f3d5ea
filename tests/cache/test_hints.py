"""Hints about the next use: what true ones gain, and how little wrong ones can lose."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from ockham.cache.native_tree import Tree, make_tree
from ockham.core.seams import EXPECTED, PLAIN, SPENT

PAGE = 4
DOCUMENT = 16
Hint = Callable[[list[int], int], int]
"""Of a trace and a place in it: what is said there of the document that was asked for."""


def replay(trace: list[int], pages: int, hint: Hint | None) -> float:
    """The share of tokens that were held when they were asked for, with room for so many pages."""
    tree: Tree = make_tree(PAGE, (0,), 0.0)
    free = list(range(pages))
    hits = 0
    for at, document in enumerate(trace):
        tokens = np.arange(document * DOCUMENT, (document + 1) * DOCUMENT, dtype=np.int32)
        found = tree.match("", tokens)
        hits += found.tokens
        count = DOCUMENT // PAGE
        table = np.full(count, -1, np.int32)
        table[: len(found.tables[0])] = found.tables[0]
        missing = count - found.tokens // PAGE
        if found.tokens:
            tree.lock(found.node)
        while len(free) < missing:
            (given,) = tree.evict() or [np.array([], np.int32)]
            assert len(given)
            free += given.tolist()
        for entry in range(count - missing, count):
            table[entry] = free.pop()
        if found.tokens:
            tree.unlock(found.node)
        node, _ = tree.insert("", tokens, [table])
        if hint is not None:
            tree.hint(node, hint(trace, at), 0)
    return hits / (len(trace) * DOCUMENT)


def popular_and_once(seed: int) -> list[int]:
    """Some documents return, more often than not after many that are asked for once only."""
    rng, trace, fresh = Random(seed), [], 1000
    for _ in range(3000):
        if rng.random() < 0.4:
            trace.append(rng.randrange(24))
        else:
            trace.append(fresh)
            fresh += 1
    return trace


def truth(reach: int) -> Hint:
    """Whether a document is asked for again among the next `reach` requests."""

    def hint(trace: list[int], at: int) -> int:
        return EXPECTED if trace[at] in trace[at + 1 : at + 1 + reach] else SPENT

    return hint


def lie(reach: int) -> Hint:
    true = truth(reach)

    def hint(trace: list[int], at: int) -> int:
        return SPENT if true(trace, at) == EXPECTED else EXPECTED

    return hint


@pytest.mark.parametrize("seed", range(3))
def test_true_hints_find_more_and_wrong_ones_lose_a_bounded_part(seed: int) -> None:
    trace, pages = popular_and_once(seed), 80
    recency = replay(trace, pages, None)
    quarter = replay(trace, pages // 4, None)
    assert replay(trace, pages, truth(60)) > 1.3 * recency
    assert replay(trace, pages, lie(60)) >= quarter
    assert replay(trace, pages, lambda trace, at: PLAIN) == recency


@pytest.mark.parametrize("seed", range(3))
def test_no_hints_lose_more_than_three_quarters_of_the_room(seed: int) -> None:
    """Random traces under random and adversarial bits, against recency with a quarter of the
    pages."""
    rng = Random(seed)
    trace = [min(rng.randrange(40), rng.randrange(40)) for _ in range(2000)]
    for hint in (
        lambda trace, at: SPENT if trace[at] < 12 else EXPECTED,
        lambda trace, at: SPENT,
        lambda trace, at: rng.choice([SPENT, PLAIN, EXPECTED]),
    ):
        assert replay(trace, 64, hint) >= replay(trace, 16, None)


def test_a_use_takes_a_hint_back() -> None:
    tree: Tree = make_tree(PAGE, (0,), 0.0)
    tokens = np.arange(8, dtype=np.int32)
    node, _ = tree.insert("", tokens, [np.array([0, 1], np.int32)])
    tree.hint(node, SPENT, 0)
    assert [facts.hint for facts in tree.dump()] == [SPENT]
    tree.match("", tokens, touch=False)
    assert [facts.hint for facts in tree.dump()] == [SPENT]
    tree.match("", tokens)
    assert [facts.hint for facts in tree.dump()] == [PLAIN]
