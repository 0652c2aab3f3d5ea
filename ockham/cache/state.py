"""State in pages: one pool and one page table per group of layers, shared by reference counts.

A *view* is a sequence's own window onto the pool. Its cells `[0, length)` hold valid state; page
`p` of every group holds the cells `[p * page_tokens, (p + 1) * page_tokens)`, so pages are aligned
to logical index. Forks share pages and copy the last one when they first write to it. Pages before
a sliding window are let go; their table entry becomes -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from ockham.core.arrays import Ints, Longs
from ockham.core.errors import ConfigError, OckhamError
from ockham.core.step import Tables
from ockham.kernels.base import GroupLayout, Planes


class View:
    """One sequence's state. Made, changed and released only by `State`."""

    __slots__ = ("length", "let_go", "pages", "released", "shared_tail", "tables")

    def __init__(self, groups: int, most_pages: int) -> None:
        self.tables: list[Ints] = [np.empty(most_pages, np.int32) for _ in range(groups)]
        self.pages = 0
        """Table entries in use, the same in every group."""
        self.let_go = [0] * groups
        """Leading entries of each group's table that are -1."""
        self.length = 0
        """Cells that hold valid state."""
        self.shared_tail = False
        """Whether the page that holds cell `length` may be shared, and so must not be written."""
        self.released = False


class ExportedState(msgspec.Struct):
    """Cells of a view as bytes, for another pool of the same shape.

    `first[g]` is the first cell of group g that is held; `data[g]` the planes' bits from there.
    """

    numerics_id: str
    length: int
    first: list[int]
    data: list[bytes]


class State:
    """The pool of pages and everything that may be done to views.

    `most_cells` bounds the length of one view. Operations that need pages either succeed or change
    nothing and say so.
    """

    def __init__(
        self, planes: Planes, groups: Sequence[GroupLayout], most_cells: int, numerics_id: str
    ) -> None:
        if len({g.page_tokens for g in groups}) != 1:
            raise ConfigError("all layer groups must have pages of the same number of tokens.")
        self.planes = planes
        self.groups = tuple(groups)
        self.page_tokens = groups[0].page_tokens
        self.numerics_id = numerics_id
        self.windows = tuple(g.window or 0 for g in groups)
        self.sizes = tuple(g.pages for g in groups)
        self.reclaim: Callable[[list[int]], None] | None = None
        """Asked to make so many pages of each group free, when there are fewer."""
        self._most_pages = -(-most_cells // self.page_tokens)
        self._refs: list[Ints] = [np.zeros(g.pages, np.int32) for g in groups]
        self._free: list[list[int]] = [list(range(g.pages - 1, -1, -1)) for g in groups]

    # -- how much there is ---------------------------------------------------------------------

    @property
    def pages_total(self) -> int:
        return sum(g.pages for g in self.groups)

    @property
    def pages_used(self) -> int:
        return self.pages_total - sum(len(free) for free in self._free)

    @property
    def capacity(self) -> int:
        """Tokens whose state the pool holds, in the group that has the least room."""
        return min(group.pages * group.page_tokens for group in self.groups)

    def free_pages(self) -> list[int]:
        """Free pages of each group."""
        return [len(free) for free in self._free]

    def pages_for(self, cells: int, group: int, chunk: int) -> int:
        """Most pages that a sequence of `cells` cells holds at once in a group, if it is computed
        in runs of at most `chunk` rows."""
        window = self.groups[group].window
        held = cells if window is None else min(cells, window + chunk)
        # A window's first cell can stand anywhere in its page, so it may touch one page more.
        unaligned = 0 if window is None or held == cells else 1
        return -(-held // self.page_tokens) + unaligned

    # -- views ---------------------------------------------------------------------------------

    def new_view(self) -> View:
        return View(len(self.groups), self._most_pages)

    def reserve(self, view: View, cells: int) -> bool:
        """Make the cells `[view.length, cells)` writable. False, and nothing changed, if the pool
        has too few pages."""
        more = -(-cells // self.page_tokens) - view.pages
        if more <= 0 and not view.shared_tail:
            return True
        more = max(more, 0)
        # What is reclaimed may have been the other holder of a page that was to be copied.
        if not (self._obtain(self._need(view, more)) or self._has(self._need(view, more))):
            return False
        for group in self._tail_copies(view):
            self._copy_tail(view, group)
        view.shared_tail = False
        for group, free in enumerate(self._free):
            for entry in range(view.pages, view.pages + more):
                page = free.pop()
                self._refs[group][page] = 1
                view.tables[group][entry] = page
        view.pages += more
        return True

    def _need(self, view: View, more: int) -> list[int]:
        copies = self._tail_copies(view)
        return [more + (group in copies) for group in range(len(self.groups))]

    def _obtain(self, need: list[int]) -> bool:
        """Whether so many pages of each group are free, or could be made so."""
        if self._has(need):
            return True
        if self.reclaim is not None:
            self.reclaim(need)
        return self._has(need)

    def _has(self, need: list[int]) -> bool:
        return all(len(free) >= n for free, n in zip(self._free, need, strict=True))

    def adopt(self, tables: Sequence[Ints], length: int) -> View:
        """A view of `length` cells that others hold: `tables[g]` are their pages, -1 before the
        first that is needed. The first to write to a page that is shared in part copies it."""
        view = self.new_view()
        view.pages, view.length = -(-length // self.page_tokens), length
        for group, table in enumerate(tables):
            view.tables[group][: view.pages] = table
            missing = np.flatnonzero(table < 0)
            view.let_go[group] = int(missing[-1]) + 1 if len(missing) else 0
            self._refs[group][table[view.let_go[group] :]] += 1
        view.shared_tail = length % self.page_tokens != 0
        return view

    def take(self, counts: Sequence[int]) -> list[Ints] | None:
        """So many pages of each group, held once; None, and nothing changed, if there are fewer."""
        if not self._obtain(list(counts)):
            return None
        taken = []
        for free, refs, count in zip(self._free, self._refs, counts, strict=True):
            pages = np.array([free.pop() for _ in range(count)], np.int32)
            refs[pages] = 1
            taken.append(pages)
        return taken

    def hold(self, pages: Sequence[Ints]) -> None:
        """Count one more holder of each page. `pages[g]` has a page as often as it is held."""
        for refs, each in zip(self._refs, pages, strict=True):
            np.add.at(refs, each, 1)

    def drop(self, pages: Sequence[Ints]) -> None:
        """Count one holder less of each page, none of them twice."""
        for group, each in enumerate(pages):
            self._give_back(group, each)

    def holders(self, group: int, pages: Ints) -> Ints:
        """How often each of the pages is held."""
        held: Ints = self._refs[group][pages]
        return held

    def advance(self, view: View, cells: int) -> None:
        """Say that the cells up to `cells` now hold valid state."""
        if cells > view.pages * self.page_tokens:
            raise OckhamError(f"{cells} cells were written, {view.pages} pages are reserved.")
        view.length = cells

    def fork(self, view: View) -> View:
        """A second view of the same cells. Either may go on; the first to write to a page that
        both hold copies it."""
        twin = self.new_view()
        twin.length = view.length
        twin.let_go = list(view.let_go)
        twin.pages = -(-view.length // self.page_tokens)
        for group, table in enumerate(view.tables):
            twin.tables[group][: twin.pages] = table[: twin.pages]
            self._refs[group][table[view.let_go[group] : twin.pages]] += 1
        if view.length % self.page_tokens:
            twin.shared_tail = view.shared_tail = True
        return twin

    def snapshot(self, view: View) -> View:
        """The view as it stands, kept whatever happens to the original. Restore it with `fork`."""
        return self.fork(view)

    def truncate(self, view: View, cells: int) -> None:
        """Forget the cells from `cells` on. Raises OckhamError if a window has already let go of
        cells that the shorter view would see."""
        if cells > view.length:
            raise OckhamError(f"cannot truncate {view.length} cells to {cells}.")
        for group, layout in enumerate(self.groups):
            first_seen = 0 if layout.window is None else max(0, cells + 1 - layout.window)
            if view.let_go[group] * self.page_tokens > first_seen:
                raise OckhamError(
                    f"cannot truncate to {cells} cells: a layer with a window of {layout.window} "
                    f"has let go of cells below {view.let_go[group] * self.page_tokens}."
                )
        keep = -(-cells // self.page_tokens)
        for group in range(len(self.groups)):
            self._give_back(group, view.tables[group][max(keep, view.let_go[group]) : view.pages])
        view.pages = keep
        view.length = cells
        view.shared_tail = cells % self.page_tokens != 0 and any(
            self._refs[g][view.tables[g][keep - 1]] > 1 for g in range(len(self.groups))
        )

    def let_go(self, view: View, group: int, first_kept: int) -> None:
        """Give back a group's pages that lie wholly before cell `first_kept`."""
        upto = min(first_kept // self.page_tokens, view.length // self.page_tokens)
        start = view.let_go[group]
        if upto <= start:
            return
        self._give_back(group, view.tables[group][start:upto])
        view.tables[group][start:upto] = -1
        view.let_go[group] = upto

    def release(self, view: View) -> None:
        """Give back everything. A released view must not be used again."""
        if view.released:
            raise OckhamError("a view was released twice.")
        for group, table in enumerate(view.tables):
            self._give_back(group, table[view.let_go[group] : view.pages])
        view.pages = view.length = 0
        view.released = True

    def move(self, view: View, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy the state of cells `source` to cells `target` of the same view, as when the accepted
        path of a draft tree is put where a chain would have stood. All must be writable."""
        for group in range(len(self.groups)):
            self.planes.copy(
                group,
                self._slots(view, group, np.asarray(source, np.int64)),
                self._slots(view, group, np.asarray(target, np.int64)),
            )

    def export(self, view: View) -> ExportedState:
        """The view's valid cells as bytes."""
        first, data = [], []
        for group in range(len(self.groups)):
            start = min(view.let_go[group] * self.page_tokens, view.length)
            cells = np.arange(start, view.length)
            first.append(start)
            data.append(self.planes.read(group, self._slots(view, group, cells)).tobytes())
        return ExportedState(self.numerics_id, view.length, first, data)

    def import_(self, exported: ExportedState) -> View | None:
        """A new view that holds exported cells; None if the pool has too few pages.

        Raises OckhamError if the state is another model's, or does not have the size it claims.
        """
        self._check_import(exported)
        view = self.new_view()
        pages = -(-exported.length // self.page_tokens)
        skipped = [first // self.page_tokens for first in exported.first]
        if not self._obtain([pages - skip for skip in skipped]):
            return None
        for group, skip in enumerate(skipped):
            view.tables[group][:skip] = -1
            view.let_go[group] = skip
            for entry in range(skip, pages):
                page = self._free[group].pop()
                self._refs[group][page] = 1
                view.tables[group][entry] = page
        view.pages, view.length = pages, exported.length
        for group, layout in enumerate(self.groups):
            cells = np.arange(exported.first[group], exported.length)
            shape = (len(layout.layers), 2, len(cells), layout.kv_heads, layout.head_dim)
            dtype = np.uint16 if layout.dtype == "bfloat16" else np.float32
            state = np.frombuffer(exported.data[group], dtype).reshape(shape)
            self.planes.write(group, self._slots(view, group, cells), state)
        return view

    def slots(self, view: View, group: int, cells: Ints) -> Longs:
        """Where the cells of a view stand. They must be reserved and not let go."""
        return self._slots(view, group, cells.astype(np.int64))

    # -- for steps -----------------------------------------------------------------------------

    def tables(self, views: Sequence[View]) -> tuple[Tables, ...]:
        """The page tables of several views, one after another, for each group."""
        starts = np.zeros(len(views) + 1, np.int32)
        np.cumsum([view.pages for view in views], out=starts[1:])
        return tuple(
            Tables(np.concatenate([view.tables[g][: view.pages] for view in views]), starts)
            for g in range(len(self.groups))
        )

    # -- checks --------------------------------------------------------------------------------

    def check_integrity(self, views: Iterable[View], kept: Sequence[Ints] = ()) -> None:
        """Raise OckhamError unless `views` and `kept` (of each group, the pages that a Reuse holds)
        are exactly what the pool thinks is held."""
        held = [Counter(kept[g].tolist() if len(kept) else ()) for g in range(len(self.groups))]
        for view in views:
            if view.length > view.pages * self.page_tokens:
                raise OckhamError(f"a view holds {view.length} cells in {view.pages} pages.")
            for group, table in enumerate(view.tables):
                held[group].update(table[view.let_go[group] : view.pages].tolist())
        for group, layout in enumerate(self.groups):
            refs = {p: int(n) for p, n in enumerate(self._refs[group]) if n}
            if refs != dict(held[group]):
                raise OckhamError(f"reference counts of group {group} do not match the views.")
            free = self._free[group]
            if sorted([*free, *refs]) != list(range(layout.pages)):
                raise OckhamError(
                    f"pages of group {group} were lost, or are free and held at once."
                )

    # -- inside --------------------------------------------------------------------------------

    def _slots(self, view: View, group: int, cells: Longs) -> Longs:
        pages = view.tables[group][cells // self.page_tokens].astype(np.int64)
        return pages * self.page_tokens + cells % self.page_tokens

    def _tail_copies(self, view: View) -> list[int]:
        """Groups in which the page of cell `length` is held by someone else too."""
        if not view.shared_tail:
            return []
        entry = view.length // self.page_tokens
        return [g for g in range(len(self.groups)) if self._refs[g][view.tables[g][entry]] > 1]

    def _copy_tail(self, view: View, group: int) -> None:
        entry = view.length // self.page_tokens
        old, new = int(view.tables[group][entry]), self._free[group].pop()
        self._refs[group][old] -= 1
        self._refs[group][new] = 1
        offsets = np.arange(view.length % self.page_tokens, dtype=np.int64)
        self.planes.copy(group, old * self.page_tokens + offsets, new * self.page_tokens + offsets)
        view.tables[group][entry] = new

    def _give_back(self, group: int, pages: Ints) -> None:
        refs = self._refs[group]
        refs[pages] -= 1
        self._free[group].extend(pages[refs[pages] == 0].tolist())

    def _check_import(self, exported: ExportedState) -> None:
        if exported.numerics_id != self.numerics_id:
            raise OckhamError(
                f"the state was computed under the numerics id {exported.numerics_id}, this engine "
                f"runs {self.numerics_id}; it would not have the same bits."
            )
        if (
            not 0 <= exported.length <= self._most_pages * self.page_tokens
            or len(exported.first) != len(self.groups)
            or len(exported.data) != len(self.groups)
        ):
            raise OckhamError(f"an exported state of {exported.length} cells does not fit here.")
        for group, layout in enumerate(self.groups):
            first = exported.first[group]
            aligned = first % self.page_tokens == 0 or first == exported.length
            expected = (exported.length - first) * layout.cell_bytes
            if (
                not 0 <= first <= exported.length
                or not aligned
                or len(exported.data[group]) != expected
            ):
                raise OckhamError(f"group {group} of an exported state has the wrong size.")
