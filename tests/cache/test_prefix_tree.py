"""The radix tree against a dictionary of prefixes, and the native one against the plain one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ockham.cache.native_tree import NativeTree
from ockham.cache.prefix_tree import PrefixTree
from ockham.core.seams import EXPECTED, GONE, PLAIN, SPENT
from ockham.kernels.native import core

PAGE = 4
SALTS = ["", "tenant"]
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def ids_of(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


class Trees(RuleBasedStateMachine):
    """Every page number is used once, so that what a page holds can be looked up: `cells[page]` are
    the salt and the tokens up to the last cell that was valid when the page was made."""

    @initialize(
        window=st.sampled_from([0, 1, 3, 9]),
        slope=st.sampled_from([0.0, 0.1]),
        apart=st.booleans(),
    )
    def start(self, window: int, slope: float, apart: bool) -> None:
        self.windows = (0, window) if window else (0,)
        self.apart = (1,) if window and apart else ()
        self.trees = [PrefixTree(PAGE, self.windows, slope, self.apart)]
        if core is not None:
            native = NativeTree(PAGE, self.windows, slope, self.apart)
            self.trees.append(native)  # type: ignore[arg-type]
        self.pages = 0
        self.cells: dict[int, tuple[str, list[int]]] = {}
        self.held: list[Counter[int]] = [Counter() for _ in self.windows]
        self.locked: list[int] = []

    @rule(salt=st.sampled_from(SALTS), tokens=TOKENS, let_go=st.integers(0, 4), lock=st.booleans())
    def insert(self, salt: str, tokens: list[int], let_go: int, lock: bool) -> None:
        """As a sequence does: what is held already comes from the tree, the rest is its own."""
        found = self.trees[0].match(salt, ids_of(tokens), touch=False)
        count = -(-len(tokens) // PAGE)
        tables = []
        for group, window in enumerate(self.windows):
            table = np.full(count, -1, np.int32)
            whole = found.tokens // PAGE
            table[:whole] = found.tables[group][:whole]
            for page in range(whole, count):
                table[page] = self.pages
                self.cells[self.pages] = (salt, tokens)
                self.pages += 1
            if window:
                table[: min(let_go, max(0, len(tokens) + 1 - window) // PAGE)] = -1
            tables.append(table)
        results = [tree.insert(salt, ids_of(tokens), tables) for tree in self.trees]
        (node, taken), *others = results
        for other, other_taken in others:
            assert other == node
            assert [t.tolist() for t in other_taken] == [t.tolist() for t in taken]
        for group, pages in enumerate(taken):
            self.held[group].update(pages.tolist())
        if lock:
            self._all("lock", node)
            self.locked.append(node)

    @rule(salt=st.sampled_from(SALTS), tokens=TOKENS, touch=st.booleans())
    def match(self, salt: str, tokens: list[int], touch: bool) -> None:
        first, *others = [tree.match(salt, ids_of(tokens), touch) for tree in self.trees]
        for other in others:
            assert (other.tokens, other.node) == (first.tokens, first.node)
            assert [t.tolist() for t in other.tables] == [t.tolist() for t in first.tables]
        longest = max(
            (n for n in range(len(tokens) + 1) if self._is_held(salt, tokens[:n])), default=0
        )
        if len(self.windows) == 1:
            assert first.tokens == longest
        assert first.tokens <= longest
        for tree in self.trees:
            agreed, tables = tree.agreed(salt, ids_of(tokens))
            assert agreed == longest
            assert [len(table) for table in tables] == [-(-longest // PAGE)] * len(self.windows)
            assert (tables[0] >= 0).all()
            for table, usable in zip(tables, first.tables, strict=True):
                there = usable[: first.tokens // PAGE] >= 0
                assert (table[: len(there)][there] == usable[: len(there)][there]).all()
        for window, table in zip(self.windows, first.tables, strict=True):
            seen = max(0, first.tokens + 1 - window) if window else 0
            for cell in range(seen, first.tokens):
                of_salt, of_tokens = self.cells[int(table[cell // PAGE])]
                assert of_salt == salt
                assert of_tokens[: cell + 1] == tokens[: cell + 1]

    def _is_held(self, salt: str, tokens: list[int]) -> bool:
        """By the tree's own list of nodes, followed from the root."""
        return not tokens or tuple(tokens) in self._paths().get(salt, set())

    def _paths(self) -> dict[str, set[tuple[int, ...]]]:
        paths: dict[str, set[tuple[int, ...]]] = {}
        tree = self.trees[0]
        for salt, root in tree._roots.items():
            below = [((), child) for child in root.children.values()]
            while below:
                before, node = below.pop()
                own = node.tokens.tolist()
                found = paths.setdefault(salt, set())
                found.update((*before, *own[:n]) for n in range(1, len(own) + 1))
                below += [((*before, *own), child) for child in node.children.values()]
        return paths

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        nodes = self.trees[0].dump()
        if not nodes:
            return
        facts = data.draw(st.sampled_from(sorted(nodes)))
        cells = data.draw(st.integers(facts.start + 1, facts.start + facts.tokens))
        results = [tree.cut(facts.number, cells) for tree in self.trees]
        (node, taken), *others = results
        for other, other_taken in others:
            assert other == node
            assert [t.tolist() for t in other_taken] == [t.tolist() for t in taken]
        for group, pages in enumerate(taken):
            self.held[group].update(pages.tolist())
        (upper,) = [each for each in self.trees[0].dump() if each.number == node]
        assert upper.start + upper.tokens == cells

    @rule()
    def evict(self) -> None:
        first, *others = [tree.evict() for tree in self.trees]
        for other in others:
            assert (other is None) == (first is None)
            if first is not None:
                assert [p.tolist() for p in other] == [p.tolist() for p in first]
        if first is not None:
            for group, pages in enumerate(first):
                self.held[group].subtract(pages.tolist())

    @rule()
    def release(self) -> None:
        if not self.apart:
            return
        holding = sum(len(node.children) for node in self.trees[0]._nodes.values())
        free = self.trees[0].evictable()[1]
        first, *others = [tree.release(self.apart) for tree in self.trees]
        for other in others:
            assert (other is None) == (first is None)
            if first is not None:
                assert [p.tolist() for p in other] == [p.tolist() for p in first]
        assert (first is None) <= (free <= 0)
        if first is not None:
            assert not len(first[0])
            assert 0 < len(first[1]) <= 2 + (self.windows[1] - 2) // PAGE
            self.held[1].subtract(first[1].tolist())
            assert holding == sum(len(n.children) for n in self.trees[0]._nodes.values())

    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        if self.locked:
            node = data.draw(st.sampled_from(self.locked))
            self.locked.remove(node)
            self._all("unlock", node)

    @rule(
        data=st.data(),
        hint=st.sampled_from([GONE, SPENT, PLAIN, EXPECTED]),
        now_s=st.integers(0, 9),
    )
    def hint(self, data: st.DataObject, hint: int, now_s: int) -> None:
        nodes = self.trees[0].dump()
        if not nodes:
            return
        self._all("tick", float(now_s))
        facts = data.draw(st.sampled_from(sorted(nodes)))
        start = data.draw(st.integers(0, facts.start + facts.tokens))
        first, *others = [tree.hint(facts.number, hint, start) for tree in self.trees]
        for other in others:
            assert [t.tolist() for t in other] == [t.tolist() for t in first]
        for group, pages in enumerate(first):
            self.held[group].update(pages.tolist())

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        if self.locked:
            self._all("pin", data.draw(st.sampled_from(self.locked)), pinned)

    def _all(self, method: str, *args: object) -> None:
        for tree in self.trees:
            getattr(tree, method)(*args)

    @invariant()
    def holds_what_it_says(self) -> None:
        if not hasattr(self, "trees"):
            return
        for tree in self.trees:
            for group, held in enumerate(self.held):
                assert Counter(tree.held(group).tolist()) == +held
        first, *others = self.trees
        for other in others:
            assert sorted(other.dump()) == sorted(first.dump())
            assert other.evictable() == first.evictable()
            assert (other.tokens, other.nodes) == (first.tokens, first.nodes)
            assert other.pages == first.pages == sum((+held).total() for held in self.held)
            for facts in first.dump():
                own = first.tokens_of(facts.number, 3).tolist()
                assert other.tokens_of(facts.number, 3).tolist() == own

    def teardown(self) -> None:
        """Unlocked and unpinned, everything can be let go of."""
        if not hasattr(self, "trees"):
            return
        for node in self.locked:
            self._all("pin", node, False)
            self._all("unlock", node)
        for tree in self.trees:
            for facts in tree.dump():
                tree.pin(facts.number, False)
            while tree.evict() is not None:
                pass
            assert (tree.nodes, tree.tokens) == (0, 0)
            assert not any(len(tree.held(group)) for group in range(len(self.windows)))


TestTrees = Trees.TestCase


def kinds() -> list[type[PrefixTree] | type[NativeTree]]:
    return [PrefixTree] if core is None else [PrefixTree, NativeTree]


def held_at(tree: PrefixTree | NativeTree, tokens: list[int]) -> list[int]:
    """The pages at which the group that goes apart holds something of a context."""
    _, tables = tree.agreed("", ids_of(tokens))
    return np.flatnonzero(tables[1] >= 0).tolist()


@pytest.mark.parametrize("kind", kinds())
def test_a_passed_checkpoint_goes_first_and_keys_and_values_stay(
    kind: type[PrefixTree] | type[NativeTree],
) -> None:
    tree = kind(PAGE, (0, PAGE + 1), 0.0, (1,))
    first, second = list(range(1, 41)), list(range(101, 121))
    ends = np.full(10, -1, np.int32)
    ends[[3, 9]] = 3, 9
    tree.insert("", ids_of(first), [np.arange(10, dtype=np.int32), ends])
    ends = np.full(5, -1, np.int32)
    ends[4] = 24
    tree.insert("", ids_of(second), [np.arange(20, 25, dtype=np.int32), ends])
    went = []
    while (pages := tree.release([1])) is not None:
        went.append(pages[1].tolist())
        assert tree.agreed("", ids_of(first))[0] == 40
    # The first one of the first context was passed; of the others the one used longest ago goes.
    assert went == [[3], [9], [24]]
    assert tree.match("", ids_of(first)).tokens == 0
    assert len(tree.held(0)) == 15


@pytest.mark.parametrize("kind", kinds())
def test_a_checkpoint_where_contexts_branch_off_is_not_passed(
    kind: type[PrefixTree] | type[NativeTree],
) -> None:
    tree = kind(PAGE, (0, PAGE + 1), 0.0, (1,))
    shared, size = list(range(1, 21)), 10
    for number, own in enumerate((200, 300)):
        tokens = shared + list(range(own, own + 20))
        ends = np.full(size, -1, np.int32)
        ends[[4, 9]] = 4, 100 + number
        kept = np.arange(number * size, (number + 1) * size, dtype=np.int32)
        kept[:5] = range(5)
        tree.insert("", ids_of(tokens), [kept, ends])
    assert held_at(tree, shared) == [4]
    tree.match("", ids_of(shared))  # the shared text was used last
    assert [tree.release([1])[1].tolist() for _ in range(3)] == [[100], [101], [4]]


@pytest.mark.parametrize("kind", kinds())
def test_a_locked_or_pinned_checkpoint_stays(kind: type[PrefixTree] | type[NativeTree]) -> None:
    tree = kind(PAGE, (0, PAGE + 1), 0.0, (1,))
    tokens = ids_of(list(range(1, 9)))
    node, _ = tree.insert("", tokens, [ids_of([0, 1]), ids_of([-1, 1])])
    tree.lock(node)
    assert tree.release([1]) is None
    tree.unlock(node)
    tree.pin(node)
    assert tree.release([1]) is None
    tree.pin(node, False)
    assert tree.release([1])[1].tolist() == [1]


TestTrees.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
