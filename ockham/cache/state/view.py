"""A sequence's own window onto the pools: `View`, and for each group of layers a `GroupView`.

Three numbers are kept apart. `View.tokens` is how many tokens the state stands for: the place of
the next row. `GroupView.length` is how many cells a group holds of them. `GroupView.dropped` is the
difference: the token in place p stands in cell p - dropped, if it came after the latest compaction.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from ockham.core.arrays import Ints


class GroupView:
    """What one group of layers holds of a sequence: the cells `[0, length)`, in pages."""

    __slots__ = (
        "dropped",
        "gaps",
        "kept",
        "length",
        "let_go",
        "pages",
        "shared_tail",
        "table",
        "written",
    )

    def __init__(self, most_pages: int) -> None:
        self.table: Ints = np.empty(most_pages, np.int32)
        """Page p holds the cells from p * page_tokens on; -1 where it was let go."""
        self.pages = 0
        """Table entries in use."""
        self.let_go = 0
        """Leading entries that are -1."""
        self.length = 0
        """Cells that hold valid state."""
        self.dropped = 0
        """Tokens before the next row whose cells are held no longer, because it was compacted."""
        self.shared_tail = False
        """Whether the page that holds cell `length` may be shared, and so must not be written."""
        self.kept: Ints | None = None
        """Which tokens the first cells are of, by their places: (n,), or (kv_heads, n) or (layers,
        kv_heads, n) where each head kept its own, -1 in gaps; None as long as each cell is that of
        the token in its place. Tokens since the compaction follow in order."""
        self.gaps: Ints | None = None
        """(layers, kv_heads) how many of the first cells are no cells of a head, which kept fewer
        than others; None if all kept as many. A multiple of `core.visits.BLOCK_KEYS`: no row
        visits those blocks."""

        self.written: list[int] | None = None
        """In a group whose cells are those of the rows that took a pass (`StateSpec.of_pass`), the
        places of the tokens that they are of; None where every row has a cell."""

    def cells(self, tokens: int) -> int:
        """How many of the cells are of the first `tokens` tokens."""
        if self.written is None:
            return tokens - self.dropped
        return bisect_left(self.written, tokens)

    @property
    def entries(self) -> Ints:
        """The page table."""
        return self.table[: self.pages]

    def places(self, tokens: int) -> Ints:
        """Which tokens the cells are of, if they stand for `tokens` tokens: (n,), or (kv_heads, n)
        or (layers, kv_heads, n) where each head kept its own, -1 in gaps."""
        if self.written is not None:
            return np.array(self.written, np.int32)
        if self.kept is None:
            return np.arange(self.length, dtype=np.int32)
        kept = self.kept.shape[-1]
        since = np.arange(tokens - (self.length - kept), tokens, dtype=np.int32)
        return np.concatenate(
            (self.kept, np.broadcast_to(since, (*self.kept.shape[:-1], len(since)))), axis=-1
        )


class View:
    """One sequence's state. Made, changed and released only by `State`."""

    __slots__ = ("changes", "compacted_at", "groups", "released", "tokens")

    def __init__(self, groups: int, most_pages: int) -> None:
        self.groups = tuple([GroupView(most_pages) for _ in range(groups)])
        self.tokens = 0
        """Tokens whose state it stands for: the place of the next row."""
        self.compacted_at = 0
        """`tokens` when cells were last dropped. It cannot be truncated to fewer."""
        self.changes = 0
        """Raised whenever a page table changes, or will at the next write, in another way than by
        growing."""
        self.released = False

    @property
    def pages(self) -> int:
        """The most table entries that a group uses."""
        return max([held.pages for held in self.groups])

    @property
    def tables(self) -> list[Ints]:
        """The page table of each group."""
        return [held.entries for held in self.groups]
