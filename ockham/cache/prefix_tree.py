"""A radix tree of token sequences and of the pages that hold their state: the plain form.

csrc/state/prefix_tree.h does the same with the same results and runs where the core was built;
this one is its oracle, and runs where nothing could be compiled. The tree knows page numbers, never
the pool: `State` counts who holds a page, and is told by what these methods return.

A node holds a run of tokens, cells `[start, end)` of every sequence that passes through it, and the
pages that those cells touch. A page that a branch shares only in part belongs to both sides, each
with its own copy or with one that is valid for its own cells. Page -1: a sliding window had let go
of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.seams import EXPECTED, GONE, PLAIN, SPENT, NodeFacts


@dataclass(slots=True, eq=False)
class Node:
    """One run of tokens. `children` by their first token."""

    number: int
    parent: Node | None
    start: int
    tokens: Ints
    pages: list[list[int]]
    """Of each group, from page `start // page_tokens` on."""
    children: dict[int, Node] = field(default_factory=dict)
    locks: int = 0
    pinned: bool = False
    priority: float = 0.0
    used: int = 0
    hits: int = 0
    hint: int = PLAIN
    stamp: int = -1
    """`PrefixTree._turnover` after its last use that counted there."""
    made_s: float = 0.0
    used_s: float = 0.0

    @property
    def held(self) -> int:
        return sum(page >= 0 for own in self.pages for page in own)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(slots=True)
class Match:
    """The longest usable prefix: `tables[g]` are its pages, -1 where none is needed; `node` is the
    handle to lock."""

    tokens: int
    tables: list[Ints]
    node: int


class PrefixTree:
    """`windows[g]` is the sliding window of layer group g, 0 for none.

    Which unused leaf goes first is decided by GreedyDual (Young, 1994; Cao and Irani, 1997):
    priority = clock + cost, where cost is 1 + `slope` * depth, what a token of that depth costs to
    compute in units of the first one, and the clock is the priority of the last that went. With a
    slope of 0 this is least recently used.

    Predictions change that order (Antoniadis et al., "Paging with Succinct Predictions", 2022: one
    bit a request): what is SPENT goes first and what is EXPECTED last, but only outside of the
    *window*: the nodes used last, up to half of the pages held, go by no prediction. So what
    recency alone would keep in a quarter of the room is kept, however wrong they are. What is GONE
    is known and goes before all else.

    Pages of the groups in `apart` may go by themselves (`release`), a checkpoint at a time: the
    pages of these groups that one place in a context needs. So a want of those pages costs no
    pages of other groups.
    """

    def __init__(
        self,
        page_tokens: int,
        windows: Sequence[int],
        slope: float = 0.0,
        apart: Sequence[int] = (),
    ) -> None:
        self.page_tokens, self.windows, self.slope = page_tokens, tuple(windows), slope
        self.apart = tuple(apart)
        self._checkpoint_pages = max(
            (2 + (self.windows[group] - 2) // page_tokens for group in apart), default=1
        )
        """The most pages of a group that one place needs."""
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}
        self._numbers = self._uses = 0
        self._clock = 0.0
        self._turnover = 0
        """Pages of the nodes that came into the window so far."""
        self._now_s = 0.0
        self.tokens = self.pages = 0
        """Tokens and pages held."""

    def tick(self, now_s: float) -> None:
        """What time it is, for the ages of nodes."""
        self._now_s = now_s

    # -- finding -------------------------------------------------------------------------------

    def match(self, salt: str, tokens: Ints, touch: bool = True) -> Match:
        """The longest prefix of `tokens` that is held and of which every page is there that the
        next row of each group would see. With `touch`, that counts as a use."""
        path = self._walk(salt, tokens)
        length = path[-1][1] if path else 0
        while True:
            tables = self._tables(path, length)
            usable = min(
                [
                    length,
                    *(
                        self._usable(t, w, length)
                        for t, w in zip(tables, self.windows, strict=True)
                        if w
                    ),
                ]
            )
            if usable == length:
                break
            length = usable
            path = [(node, min(end, length)) for node, end in path if node.start < length]
        if not length:
            return Match(0, [table[:0] for table in tables], -1)
        for table, window in zip(tables, self.windows, strict=True):
            table[: self._first_page(window, length)] = -1
        if touch:
            for node, _ in path:
                node.hits += 1
                node.hint = max(node.hint, PLAIN)  # a use proves that it was not spent
                self._use(node)
        return Match(length, tables, path[-1][0].number)

    def agreed(self, salt: str, tokens: Ints) -> tuple[int, list[Ints]]:
        """How many of the first tokens are in the tree, whether a row could go on from there or
        not, and the pages that it has of each group, -1 where it has none."""
        path = self._walk(salt, tokens)
        length = path[-1][1] if path else 0
        return length, self._tables(path, length)

    def _walk(self, salt: str, tokens: Ints) -> list[tuple[Node, int]]:
        """The nodes that `tokens` pass through, and up to which cell they agree with each."""
        path: list[tuple[Node, int]] = []
        node = self._roots.get(salt)
        at = 0
        while node is not None and at < len(tokens):
            node = node.children.get(int(tokens[at]))
            if node is None:
                break
            rest = tokens[at : at + len(node.tokens)]
            differ = np.flatnonzero(node.tokens[: len(rest)] != rest)
            agreed = int(differ[0]) if len(differ) else len(rest)
            at += agreed
            path.append((node, at))
            if agreed < len(node.tokens):
                break
        return path

    def _tables(self, path: list[tuple[Node, int]], length: int) -> list[Ints]:
        """Of each group, the pages of cells `[0, length)`: each from the deepest node on it."""
        pages = -(-length // self.page_tokens)
        tables = [np.full(pages, -1, np.int32) for _ in self.windows]
        for node, _ in path:
            first = node.start // self.page_tokens
            for table, own in zip(tables, node.pages, strict=True):
                part = own[: pages - first]
                table[first : first + len(part)] = part
        return tables

    def _first_page(self, window: int, length: int) -> int:
        """The first page that the row after `length` cells sees."""
        return max(0, length + 1 - window) // self.page_tokens if window else 0

    def _usable(self, table: Ints, window: int, length: int) -> int:
        """The longest prefix, at most `length`, whose window is held."""
        pages = len(table)
        run = 0  # pages held without a gap, up to and with page k
        runs = [run := run + 1 if page >= 0 else 0 for page in table.tolist()]
        for k in range(pages - 1, -1, -1):
            cells = min(length, (k + 1) * self.page_tokens)
            if k + 1 - self._first_page(window, cells) <= runs[k]:
                return cells
        return 0

    # -- holding -------------------------------------------------------------------------------

    def insert(self, salt: str, tokens: Ints, tables: Sequence[Ints]) -> tuple[int, list[Ints]]:
        """Hold the cells of `tokens`, whose pages are `tables`. What the tree has already stays as
        it is. Gives the handle of the last node, and of each group the pages that the tree now
        holds once more."""
        taken: list[list[int]] = [[] for _ in self.windows]
        if not len(tokens):
            return -1, _arrays(taken)
        root = self._roots.setdefault(salt, Node(-1, None, 0, tokens[:0], [[] for _ in tables]))
        path = self._walk(salt, tokens)
        node, at = path[-1] if path else (root, 0)
        if path and at < node.end:
            node = self._split(node, at, taken)
        for each in self._path(node):
            self._fill(each, tables, taken)
            self._use(each)
        if at < len(tokens):
            node = self._extend(node, tokens, tables, taken) or self._grow(
                node, tokens, tables, taken
            )
        return node.number, _arrays(taken)

    def cut(self, number: int, cells: int) -> tuple[int, list[Ints]]:
        """End a node at `cells`, so that its handle stands for no more than that. Gives what
        `insert` gives."""
        taken: list[list[int]] = [[] for _ in self.windows]
        node = self._nodes[number]
        if node.start < cells < node.end:
            node = self._split(node, cells, taken)
        return node.number, _arrays(taken)

    def _split(self, node: Node, at: int, taken: list[list[int]]) -> Node:
        """Cut a node at cell `at`: a new one takes the cells before it."""
        size = self.page_tokens
        first, cut = node.start // size, at // size
        upper = self._new(node.parent, node.start, node.tokens[: at - node.start])
        upper.pages = [own[: -(-at // size) - first] for own in node.pages]
        upper.locks, upper.pinned, upper.hint = node.locks, node.pinned, node.hint
        upper.priority, upper.used, upper.hits = node.priority, node.used, node.hits
        upper.stamp, upper.made_s, upper.used_s = node.stamp, node.made_s, node.used_s
        assert node.parent is not None, "a root is never cut"
        node.parent.children[int(upper.tokens[0])] = upper
        node.tokens = node.tokens[at - node.start :]
        node.start, node.parent = at, upper
        upper.children[int(node.tokens[0])] = node
        for group, own in enumerate(node.pages):
            node.pages[group] = own[cut - first :]
            if at % size and node.pages[group][0] >= 0:
                taken[group].append(node.pages[group][0])
                self.pages += 1
        return upper

    def _fill(self, node: Node, tables: Sequence[Ints], taken: list[list[int]]) -> None:
        """Take over pages that a window had let go of before."""
        first = node.start // self.page_tokens
        for group, own in enumerate(node.pages):
            for i, page in enumerate(own):
                other = int(tables[group][first + i])
                if page < 0 <= other:
                    own[i] = other
                    taken[group].append(other)
                    self.pages += 1

    def _extend(
        self, node: Node, tokens: Ints, tables: Sequence[Ints], taken: list[list[int]]
    ) -> Node | None:
        """Lengthen a leaf whose last page is the sequence's own, if it is one and nobody has said
        anything of what it holds so far."""
        at, size = node.end, self.page_tokens
        if node.parent is None or node.children or node.pinned or node.hint != PLAIN:
            return None
        if at % size and any(
            own[-1] != table[at // size] for own, table in zip(node.pages, tables, strict=True)
        ):
            return None
        node.tokens = np.concatenate((node.tokens, tokens[at:]))
        for group, table in enumerate(tables):
            more = table[-(-at // size) : -(-len(tokens) // size)].tolist()
            node.pages[group] += more
            taken[group] += [page for page in more if page >= 0]
            self.pages += sum(page >= 0 for page in more)
            self._turnover += sum(page >= 0 for page in more)
        self.tokens += len(tokens) - at
        self._use(node)
        return node

    def _grow(
        self, parent: Node, tokens: Ints, tables: Sequence[Ints], taken: list[list[int]]
    ) -> Node:
        """A new leaf for the cells after `parent`."""
        at = parent.end
        node = self._new(parent, at, tokens[at:].copy())
        first, last = at // self.page_tokens, -(-len(tokens) // self.page_tokens)
        node.pages = [table[first:last].tolist() for table in tables]
        for group, own in enumerate(node.pages):
            taken[group] += [page for page in own if page >= 0]
        self.pages += node.held
        parent.children[int(tokens[at])] = node
        self.tokens += len(tokens) - at
        self._use(node)
        return node

    def _new(self, parent: Node | None, start: int, tokens: Ints) -> Node:
        node = Node(self._numbers, parent, start, tokens, [], made_s=self._now_s)
        self._nodes[node.number] = node
        self._numbers += 1
        return node

    def _use(self, node: Node) -> None:
        self._uses += 1
        node.used, node.used_s = self._uses, self._now_s
        if node.stamp < 0 or self._turnover - node.stamp >= self.pages // 4:
            self._turnover += node.held
            node.stamp = self._turnover
        node.priority = self._clock + 1.0 + self.slope * node.start

    def _path(self, node: Node | None) -> Iterator[Node]:
        """The node and those above it, without the root."""
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    # -- keeping and letting go ----------------------------------------------------------------

    def lock(self, number: int) -> None:
        """Keep the path to a node: a running sequence reads it."""
        for node in self._path(self._nodes[number]):
            node.locks += 1

    def unlock(self, number: int) -> None:
        for node in self._path(self._nodes[number]):
            assert node.locks > 0, "a node was unlocked more often than locked"
            node.locks -= 1

    def pin(self, number: int, pinned: bool = True) -> None:
        """Never let go of the path to a node; or let it go again."""
        for node in self._path(self._nodes[number]):
            node.pinned = pinned

    def hint(self, number: int, hint: int, start: int) -> list[Ints]:
        """Say GONE, SPENT, PLAIN or EXPECTED of the cells from `start` on, on the path to a node.
        Gives of each group the pages that the tree now holds once more."""
        taken: list[list[int]] = [[] for _ in self.windows]
        for node in list(self._path(self._nodes[number])):
            if node.end <= start:
                break
            if node.start < start:
                self._split(node, start, taken)
            node.hint = hint
        return _arrays(taken)

    def evict(self) -> list[Ints] | None:
        """Let go of the leaf that is worth least; of each group the pages that it held. None if
        every leaf is locked or pinned."""
        leaves = [n for n in self._nodes.values() if not (n.children or n.locks or n.pinned)]
        if not leaves:
            return None
        node = self._by_hint(leaves) or min(leaves, key=_worth)
        self._clock = max(self._clock, node.priority)
        assert node.parent is not None, "a root is no leaf"
        del node.parent.children[int(node.tokens[0])]
        del self._nodes[node.number]
        self.tokens -= len(node.tokens)
        self.pages -= node.held
        self._roots = {salt: root for salt, root in self._roots.items() if root.children}
        return _arrays([[page for page in own if page >= 0] for own in node.pages])

    def _by_hint(self, leaves: list[Node]) -> Node | None:
        """The leaf to go as the hints say, if they may say it of one."""
        for hint in (GONE, SPENT, PLAIN, EXPECTED):
            of_hint = [leaf for leaf in leaves if leaf.hint == hint]
            first = min(of_hint, key=_worth, default=None)
            if first is None:
                continue
            if hint == GONE or self._turnover - first.stamp >= self.pages // 2:
                return first
        return None

    def release(self, groups: Sequence[int]) -> list[Ints] | None:
        """Let go of one checkpoint, and of no other group's pages; of each group the pages that it
        held. None if nodes that nobody has locked or pinned hold no page of `groups`, which are
        some of those that go apart.

        What is GONE goes first. Then go checkpoints that a later one of the same context has
        passed, where no other context branches off between them: a next turn goes on from the last
        one. The order among these is that of `evict`, and within a node that of its cells.
        """
        best: tuple[bool, bool, float, int, int] | None = None
        for node in self._nodes.values():
            first = None if node.locks or node.pinned else self._first_held(node, groups)
            if first is None:
                continue
            key = (node.hint != GONE, not self._passed(node, first), *_worth(node), node.number)
            if best is None or key < best:
                best, found, at = key, node, first
        if best is None:
            return None
        given: list[list[int]] = [[] for _ in self.windows]
        for group in self.apart:
            own = found.pages[group]
            for i in range(at, min(at + self._checkpoint_pages, len(own))):
                if own[i] >= 0:
                    given[group].append(own[i])
                    own[i] = -1
            self.pages -= len(given[group])
        return _arrays(given)

    def _first_held(self, node: Node, groups: Sequence[int]) -> int | None:
        """The first of a node's pages that some of the groups hold."""
        held = [i for group in groups for i, page in enumerate(node.pages[group]) if page >= 0]
        return min(held, default=None)

    def _passed(self, node: Node, first: int) -> bool:
        """Whether a later checkpoint than the one at a node's page `first` is held before any other
        context branches off."""
        after = first + self._checkpoint_pages
        if any(page >= 0 for group in self.apart for page in node.pages[group][after:]):
            return True
        if len(node.children) != 1:
            return False
        (child,) = node.children.values()
        skip = max(0, node.start // self.page_tokens + after - child.start // self.page_tokens)
        return any(page >= 0 for group in self.apart for page in child.pages[group][skip:])

    def evictable(self) -> list[int]:
        """Pages of each group in nodes that nobody has locked or pinned. A page that the node above
        holds too is that one's."""
        free = [n for n in self._nodes.values() if not (n.locks or n.pinned)]
        return [
            sum(page >= 0 for node in free for page in node.pages[group])
            - sum(self._shares_page(node, group) for node in free)
            for group in range(len(self.windows))
        ]

    def _shares_page(self, node: Node, group: int) -> bool:
        """Whether its first page is the last of the node above."""
        assert node.parent is not None, "a root has no pages"
        above, first = node.parent.pages[group], node.pages[group][0]
        return bool(node.start % self.page_tokens and first >= 0 and above and above[-1] == first)

    # -- looking at it -------------------------------------------------------------------------

    @property
    def nodes(self) -> int:
        return len(self._nodes)

    def dump(self) -> list[NodeFacts]:
        """Every node, parents before their children."""
        found = []
        for salt, root in self._roots.items():
            below = list(root.children.values())
            while below:
                node = below.pop()
                assert node.parent is not None, "a child has a parent"
                found.append(
                    NodeFacts(
                        salt,
                        node.number,
                        node.parent.number,
                        node.start,
                        len(node.tokens),
                        node.held,
                        node.hits,
                        node.locks,
                        node.pinned,
                        node.hint,
                        node.made_s,
                        node.used_s,
                    )
                )
                below.extend(node.children.values())
        return found

    def tokens_of(self, number: int, most: int) -> Ints:
        """The first tokens of a node, `most` of them at most."""
        return self._nodes[number].tokens[:most]

    def held(self, group: int) -> Ints:
        """Every page of a group as often as it is held."""
        return np.array(
            [p for n in self._nodes.values() for p in n.pages[group] if p >= 0], np.int32
        )


def _worth(node: Node) -> tuple[float, int]:
    return node.priority, node.used


def _arrays(pages: list[list[int]]) -> list[Ints]:
    return [np.array(each, np.int32) for each in pages]
