"""The state of all sequences: one pool for each group of layers, and what may be done to views.

Callers speak of tokens. What a group holds of them is its pool's affair (`paged`): a token's cell
is its place, less the cells that the group has dropped before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec
import numpy as np

from ockham.cache.state.paged import PagedPool
from ockham.cache.state.view import GroupView, View
from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.errors import ConfigError, OckhamError
from ockham.core.seams import Merges
from ockham.core.step import Tables
from ockham.kernels.base import GroupLayout, Planes

NO_PAGES: Ints = np.empty(0, np.int32)
NO_MERGES: Mapping[int, Merges] = MappingProxyType({})


class ExportedState(msgspec.Struct):
    """Cells of a view as bytes, for other pools of the same shape.

    `first[g]` is the first cell of group g that is held; `data[g]` the planes' bits from there.
    """

    numerics_id: str
    length: int
    first: list[int]
    data: list[bytes]


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """What one group of layers holds of a view; see `core.seams.HeldCells`."""

    pool: PagedPool
    view: GroupView

    def read(self, first: int, last: int) -> tuple[Floats, Floats]:
        keys, values = self.pool.read(self.view, first, last)
        return keys, values


class State:
    """The pools and everything that may be done to views.

    `most_cells` bounds the cells of one view. Operations that need pages either succeed or change
    nothing and say so.
    """

    def __init__(
        self, planes: Planes, groups: Sequence[GroupLayout], most_cells: int, numerics_id: str
    ) -> None:
        if len({g.page_tokens for g in groups}) != 1:
            raise ConfigError("all layer groups must have pages of the same number of tokens.")
        self.planes = planes
        self.groups = tuple(groups)
        self.pools = tuple(PagedPool(planes, g, layout) for g, layout in enumerate(groups))
        self.page_tokens = groups[0].page_tokens
        self.numerics_id = numerics_id
        self.windows = tuple(g.window or 0 for g in groups)
        self.sizes = tuple(g.pages for g in groups)
        self.sliding = tuple(g for g, window in enumerate(self.windows) if window)
        """The groups that have a window."""
        rowed = [g for g, layout in enumerate(groups) if not layout.spec.attends]
        self.apart = tuple(rowed) if len(rowed) < len(groups) else ()
        self.of_passes = tuple(
            sorted(
                (g for g, layout in enumerate(groups) if layout.spec.of_pass is not None),
                key=lambda g: groups[g].spec.of_pass or 0,
            )
        )
        """The groups whose cells are those of the rows that took a pass, in the passes' order."""
        self.reclaim: Callable[[list[int]], None] | None = None
        """Asked to make so many pages of each group free, when there are fewer."""
        self._most_pages = -(-most_cells // self.page_tokens)

    # -- how much there is ---------------------------------------------------------------------

    @property
    def pages_total(self) -> int:
        return sum(g.pages for g in self.groups)

    @property
    def pages_used(self) -> int:
        return self.pages_total - sum(self.free_pages())

    @property
    def capacity(self) -> int:
        """Tokens whose state the pool holds, in the group that has the least room."""
        return min(group.pages * group.page_tokens for group in self.groups)

    def free_pages(self) -> list[int]:
        """Free pages of each group."""
        return [len(pool.free) for pool in self.pools]

    def pages_for(self, cells: int, group: int, chunk: int) -> int:
        """Most pages that a sequence of `cells` cells holds at once in a group, if it is computed
        in runs of at most `chunk` rows."""
        return self.pools[group].pages_for(cells, chunk)

    # -- views ---------------------------------------------------------------------------------

    def new_view(self) -> View:
        view = View(len(self.groups), self._most_pages)
        for group in self.of_passes:
            view.groups[group].written = []
        return view

    def reserve(self, view: View, tokens: int, certain: int = 0) -> bool:
        """Make the cells of the tokens `[view.tokens, tokens)` writable, of which those below
        `certain` are computed by one step and never taken back. False, and nothing changed, if a
        pool has too few pages."""
        more, page_tokens = tokens - view.tokens, self.page_tokens
        for held in view.groups:
            if held.shared_tail or held.length + more > held.pages * page_tokens:
                break
        else:
            return True
        # What is reclaimed may have been the other holder of a page that was to be copied.
        if not (
            self._obtain(self.need(view, tokens, certain))
            or self._has(self.need(view, tokens, certain))
        ):
            return False
        for pool, held in zip(self.pools, view.groups, strict=True):
            pool.grow(held, held.length + more, certain)
        view.changes += 1
        return True

    def need(self, view: View, tokens: int, certain: int = 0) -> list[int]:
        """Free pages of each group that reserving the cells of so many tokens takes, as `reserve`
        does it."""
        more = tokens - view.tokens
        pairs = zip(self.pools, view.groups, strict=True)
        return [pool.need(held, held.length + more, certain) for pool, held in pairs]

    def adopt(self, tables: Sequence[Ints], tokens: int, reordered: bool = False) -> View:
        """A view of `tokens` tokens whose cells others hold: `tables[g]` are their pages, -1 before
        the first that is needed. The first to write to a page that is shared in part copies it.
        Cells that were `reordered` cannot be truncated."""
        view, pages = self.new_view(), -(-tokens // self.page_tokens)
        view.tokens = tokens
        view.compacted_at = tokens if reordered else 0
        for pool, held, table in zip(self.pools, view.groups, tables, strict=True):
            pool.adopt(held, table[:pages], tokens)
        return view

    def take(self, counts: Sequence[int]) -> list[Ints] | None:
        """So many pages of each group, held once; None, and nothing changed, if there are fewer."""
        if not self._obtain(list(counts)):
            return None
        return [pool.take(count) for pool, count in zip(self.pools, counts, strict=True)]

    def hold(self, pages: Sequence[Ints]) -> None:
        """Count one more holder of each page. `pages[g]` has a page as often as it is held."""
        for pool, each in zip(self.pools, pages, strict=True):
            pool.hold(each)

    def drop(self, pages: Sequence[Ints]) -> None:
        """Count one holder less of each page, none of them twice."""
        for pool, each in zip(self.pools, pages, strict=True):
            pool.drop(each)

    def holders(self, group: int, pages: Ints) -> Ints:
        """How often each of the pages is held."""
        held: Ints = self.pools[group].refs[pages]
        return held

    def advance(self, view: View, tokens: int, deep: Ints | None = None) -> None:
        """Say that the cells of the tokens up to `tokens` now hold valid state. `deep` says which
        of these tokens took each pass that rows may leave out, as `StepOutput.deep`; None: all."""
        more = tokens - view.tokens
        for held in view.groups:
            cells = held.length + more
            if cells > held.pages * self.page_tokens:
                raise OckhamError(f"{cells} cells were written, {held.pages} pages are reserved.")
            if held.written is None:
                held.length = cells
        for number, group in enumerate(self.of_passes):
            took = np.arange(more) if deep is None else np.flatnonzero(deep[number])
            self._write_some(view, group, (view.tokens + took).tolist(), tokens)
        view.tokens = tokens

    def _write_some(self, view: View, group: int, places: list[int], tokens: int) -> None:
        """Add the cells of some tokens to a group of a pass, and give back pages that others would
        have had."""
        held = view.groups[group]
        assert held.written is not None, "a group of a pass"
        held.written += places
        held.length = len(held.written)
        held.dropped = tokens - held.length
        if -(-held.length // self.page_tokens) < held.pages:
            self.pools[group].truncate(held, held.length)
            view.changes += 1

    def slide(self, view: View) -> None:
        """Give back what no later row can see, in groups that have a window."""
        for group in self.sliding:
            if self.pools[group].slide(view.groups[group]):
                view.changes += 1

    def fork(self, view: View) -> View:
        """A second view of the same cells. Either may go on; the first to write to a page that
        both hold copies it."""
        twin = self.new_view()
        twin.tokens, twin.compacted_at = view.tokens, view.compacted_at
        for pool, held, other in zip(self.pools, view.groups, twin.groups, strict=True):
            pool.fork(held, other)
        view.changes += 1
        return twin

    def snapshot(self, view: View) -> View:
        """The view as it stands, kept whatever happens to the original. Restore it with `fork`."""
        return self.fork(view)

    def truncate(self, view: View, tokens: int) -> None:
        """Forget the tokens from `tokens` on. Raises OckhamError, and changes nothing, if cells
        that the shorter view would see were dropped, or let go by a window."""
        if tokens > view.tokens:
            raise OckhamError(f"cannot truncate {view.tokens} tokens to {tokens}.")
        if tokens < view.compacted_at:
            raise OckhamError(
                f"cannot truncate to {tokens} tokens: cells were dropped when there were "
                f"{view.compacted_at}. Take a snapshot before that, and fork it."
            )
        for pool, held in zip(self.pools, view.groups, strict=True):
            pool.check_truncate(held, held.cells(tokens))
        for pool, held in zip(self.pools, view.groups, strict=True):
            pool.truncate(held, held.cells(tokens))
            if held.written is not None:
                del held.written[held.length :]
                held.dropped = tokens - held.length
        view.tokens = tokens
        view.changes += 1

    def compact(
        self,
        view: View,
        kept: Mapping[int, Ints],
        merges: Mapping[int, Merges] = NO_MERGES,
        apart: bool = False,
    ) -> bool:
        """Keep only some cells of the groups in `kept`, in this order, and free their other cells:
        (n,), (kv_heads, n), or (layers, kv_heads, n) with gaps, as `Keeping.keep` has it. What goes
        on in them, of some of these groups, is in `merges`. Pages that others hold are copied,
        those too whose cells stay where they are if the groups are to stand `apart` from what
        others hold.
        False, and nothing changed, if there are too few pages for that. Raises OckhamError for a
        group with a window, and for cells that are not held."""
        for group, cells in kept.items():
            self.pools[group].check_compact(view.groups[group], cells)
            if group in merges:
                self.pools[group].check_merges(view.groups[group], cells, merges[group])

        def copies() -> list[int]:
            need = [0] * len(self.pools)
            for group, cells in kept.items():
                held, pool = view.groups[group], self.pools[group]
                need[group] = pool.copies(held, cells, apart, merges.get(group))
            return need

        # What is reclaimed may have been the other holder of a page that was to be copied.
        if not (self._obtain(copies()) or self._has(copies())):
            return False
        for group, cells in kept.items():
            held, pool = view.groups[group], self.pools[group]
            pool.compact(held, cells, view.tokens, apart, merges.get(group))
        view.compacted_at = view.tokens
        view.changes += 1
        return True

    def held(self, view: View, group: int) -> HeldGroup:
        """What a group of layers holds of a view."""
        return HeldGroup(self.pools[group], view.groups[group])

    def alike(self, view: View, group: int, cells: range) -> Ints:
        """The cells of a group, (layers, kv_heads, cells), with those of `cells` in an order in
        which keys that are alike stand side by side: what `compact` is to keep."""
        held = view.groups[group]
        slots = self.pools[group].slots(held, np.arange(cells.start, cells.stop, dtype=np.int64))
        order = self.planes.alike(group, slots)
        every: Ints = np.empty((*order.shape[:2], held.length), np.int32)
        every[...] = np.arange(held.length, dtype=np.int32)
        every[..., cells.start : cells.stop] = cells.start + order
        return every

    def release(self, view: View) -> None:
        """Give back everything. A released view must not be used again."""
        if view.released:
            raise OckhamError("a view was released twice.")
        for pool, held in zip(self.pools, view.groups, strict=True):
            pool.release(held)
        view.tokens = 0
        view.released = True

    def move(self, view: View, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy the state of the tokens in places `source` to places `target` of the same view, as
        when the accepted path of a draft tree is put where a chain would have stood. All must be
        writable, and none dropped."""
        for pool, held in zip(self.pools, view.groups, strict=True):
            pool.move(
                held,
                np.asarray(source, np.int64) - held.dropped,
                np.asarray(target, np.int64) - held.dropped,
            )

    def export(self, view: View) -> ExportedState:
        """The view's valid cells as bytes. Raises OckhamError if cells were dropped: computing
        them again is what brings such a view elsewhere."""
        if view.compacted_at or self.of_passes:
            raise OckhamError("a view that lacks the cells of some tokens cannot be exported.")
        pairs = zip(self.pools, view.groups, strict=True)
        exported = [pool.export(held) for pool, held in pairs]
        first, data = [f for f, _ in exported], [d for _, d in exported]
        return ExportedState(self.numerics_id, view.tokens, first, data)

    def import_(self, exported: ExportedState) -> View | None:
        """A new view that holds exported cells; None if a pool has too few pages.

        Raises OckhamError if the state is another model's, or does not have the size it claims.
        """
        self._check_import(exported)
        view, tokens = self.new_view(), exported.length
        pairs = zip(self.pools, exported.first, strict=True)
        if not self._obtain([pool.import_need(first, tokens) for pool, first in pairs]):
            return None
        for pool, held, first, data in zip(
            self.pools, view.groups, exported.first, exported.data, strict=True
        ):
            pool.import_(held, first, tokens, data)
        view.tokens = tokens
        return view

    def slots(self, view: View, group: int, places: Ints) -> Longs:
        """Where the cells of the tokens in `places` stand. They must be reserved, and none of them
        dropped or let go."""
        held = view.groups[group]
        return self.pools[group].slots(held, places.astype(np.int64) - held.dropped)

    # -- for steps -----------------------------------------------------------------------------

    def tables(self, views: Sequence[View]) -> tuple[Tables, ...]:
        """The page tables of several views, one after another, for each group."""
        found = []
        for group in range(len(self.groups)):
            entries = [view.groups[group].entries for view in views]
            starts = np.zeros(len(views) + 1, np.int32)
            np.cumsum([len(each) for each in entries], out=starts[1:])
            found.append(Tables(np.concatenate(entries), starts))
        return tuple(found)

    def dropped(self, views: Sequence[View]) -> Sequence[Ints | None]:
        """How many cells of each view each group has dropped, for `build_step`; None (or no entry)
        where none."""
        if not self.of_passes and not any(view.compacted_at for view in views):
            return ()
        found: list[Ints | None] = []
        for group in range(len(self.groups)):
            gone = np.array([view.groups[group].dropped for view in views], np.int32)
            found.append(gone if gone.any() or group in self.of_passes else None)
        return found

    # -- checks --------------------------------------------------------------------------------

    def check_integrity(self, views: Iterable[View], kept: Sequence[Ints] = ()) -> None:
        """Raise OckhamError unless `views` and `kept` (of each group, the pages that a Reuse holds)
        are exactly what the pools think is held."""
        every = list(views)
        for group, pool in enumerate(self.pools):
            held = [view.groups[group] for view in every]
            for view, one in zip(every, held, strict=True):
                if one.length + one.dropped != view.tokens:
                    raise OckhamError(
                        f"a view of {view.tokens} tokens holds {one.length} cells of group "
                        f"{group}, which dropped {one.dropped}."
                    )
            pool.check_integrity(held, kept[group] if len(kept) else NO_PAGES)

    # -- inside --------------------------------------------------------------------------------

    def _obtain(self, need: list[int]) -> bool:
        """Whether so many pages of each group are free, or could be made so."""
        if self._has(need):
            return True
        if self.reclaim is not None:
            self.reclaim(need)
        return self._has(need)

    def _has(self, need: list[int]) -> bool:
        return all(len(pool.free) >= n for pool, n in zip(self.pools, need, strict=True))

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
        for group, pool in enumerate(self.pools):
            first, data = exported.first[group], exported.data[group]
            if not pool.check_import(first, exported.length, data):
                raise OckhamError(f"group {group} of an exported state has the wrong size.")
