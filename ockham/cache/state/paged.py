"""The pool of one group of layers whose state is in pages, shared by reference counts.

Page `p` of a view holds the cells `[p * page_tokens, (p + 1) * page_tokens)`, so pages are aligned
to the index of the cell. Forks share pages and copy the last one when they first write to it. Pages
before a sliding window are let go; their table entry becomes -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from ockham.cache.state.merging import Merged, check_merges
from ockham.cache.state.view import GroupView
from ockham.core.arrays import Array, Floats, Ints, Longs
from ockham.core.errors import OckhamError
from ockham.core.seams import Merges
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.base import GroupLayout, Planes
from ockham.kernels.reference.planes import sides_of


class PagedPool:
    """Pages of group `group` of the planes. Whoever grows or compacts a view has made sure that
    there are as many free pages as `need` or `copies` say."""

    def __init__(self, planes: Planes, group: int, layout: GroupLayout) -> None:
        self.layout = layout
        self.page_tokens = layout.page_tokens
        self.refs: Ints = np.zeros(layout.pages, np.int32)
        self.free: list[int] = list(range(layout.pages - 1, -1, -1))
        self._planes, self._group = planes, group

    # -- pages ---------------------------------------------------------------------------------

    def pages_for(self, cells: int, chunk: int) -> int:
        """Most pages that a sequence of `cells` cells holds at once, if it is computed in runs of
        at most `chunk` rows."""
        window = self.layout.window
        if window is not None and not self.layout.spec.attends:
            # Of a step's rows the last are kept, beside those that they look back at.
            looked_at = max(1, 1 + (window - 2) // self.page_tokens)
            return min(-(-cells // self.page_tokens), 2 * (1 + looked_at))
        held = cells if window is None else min(cells, window + chunk)
        # A window's first cell can stand anywhere in its page, so it may touch one page more.
        unaligned = 0 if window is None or held == cells else 1
        return -(-held // self.page_tokens) + unaligned

    def take(self, count: int) -> Ints:
        """So many free pages, held once."""
        pages = np.array([self.free.pop() for _ in range(count)], np.int32)
        self.refs[pages] = 1
        return pages

    def hold(self, pages: Ints) -> None:
        """Count one more holder of each page, as often as it is named."""
        np.add.at(self.refs, pages, 1)

    def drop(self, pages: Ints) -> None:
        """Count one holder less of each page, none of them twice. -1 is no page."""
        pages = pages[pages >= 0]
        self.refs[pages] -= 1
        self.free.extend(pages[self.refs[pages] == 0].tolist())

    # -- views ---------------------------------------------------------------------------------

    def need(self, held: GroupView, cells: int, certain: int = 0) -> int:
        """Free pages that making the cells up to `cells` writable takes; see `grow`."""
        pages = -(-cells // self.page_tokens)
        return max(0, pages - self._first_new(held, pages, certain)) + self._copies_tail(held)

    def grow(self, held: GroupView, cells: int, certain: int = 0) -> None:
        """Make the cells from `held.length` up to `cells` writable. Where layers keep no keys and
        values, cells that only rows below `certain` see have no page: those are rows of one step,
        in which each of them has what the others make."""
        if self._copies_tail(held):
            self._copy_tail(held)
        held.shared_tail = False
        pages = -(-cells // self.page_tokens)
        if pages > held.pages:
            first = self._first_new(held, pages, certain)
            held.table[held.pages : first] = -1
            held.table[first:pages] = self.take(pages - first)
            held.pages = pages

    def _first_new(self, held: GroupView, pages: int, certain: int) -> int:
        """The first entry of the page table, of those from `held.pages` on, that needs a page."""
        window = self.layout.window
        if self.layout.spec.attends or window is None:
            return held.pages
        return min(pages, max(held.pages, max(0, certain + 1 - window) // self.page_tokens))

    def adopt(self, held: GroupView, pages: Ints, cells: int) -> None:
        """Let an empty view hold `cells` cells that others hold in `pages`, which are -1 before the
        first that is needed."""
        held.pages, held.length = len(pages), cells
        held.table[: held.pages] = pages
        missing = np.flatnonzero(pages < 0)
        held.let_go = int(missing[-1]) + 1 if len(missing) else 0
        self.refs[pages[held.let_go :]] += 1
        held.shared_tail = cells % self.page_tokens != 0

    def fork(self, held: GroupView, twin: GroupView) -> None:
        """Let an empty view hold the same cells."""
        self.adopt(twin, held.table[: -(-held.length // self.page_tokens)], held.length)
        twin.dropped, twin.kept, twin.gaps = held.dropped, held.kept, held.gaps
        twin.written = None if held.written is None else held.written.copy()
        held.shared_tail = held.shared_tail or twin.shared_tail

    def check_truncate(self, held: GroupView, cells: int) -> None:
        """Raise OckhamError if the window has let go of cells that the shorter view would see."""
        window = self.layout.window
        first_seen = 0 if window is None else max(0, cells + 1 - window)
        needed = held.table[first_seen // self.page_tokens : -(-cells // self.page_tokens)]
        if held.let_go * self.page_tokens > first_seen or (needed < 0).any():
            raise OckhamError(
                f"cannot truncate to {cells} cells: a layer with a window of {window} has let go "
                "of some of the last of them."
            )

    def truncate(self, held: GroupView, cells: int) -> None:
        """Forget the cells from `cells` on."""
        keep = -(-cells // self.page_tokens)
        self.drop(held.table[max(keep, held.let_go) : held.pages])
        held.pages, held.length = keep, cells
        held.shared_tail = self._shares_tail(held)

    def slide(self, held: GroupView) -> bool:
        """Give back the pages that lie wholly before the window of the next row. Whether there were
        any."""
        window, start = self.layout.window, held.let_go
        upto = 0 if window is None else (held.length + 1 - window) // self.page_tokens
        if upto <= start:
            return False
        self.drop(held.table[start:upto])
        held.table[start:upto] = -1
        held.let_go = upto
        return True

    def release(self, held: GroupView) -> None:
        """Give back everything."""
        self.drop(held.table[held.let_go : held.pages])
        held.pages = held.length = held.let_go = 0

    def move(self, held: GroupView, source: Longs, target: Longs) -> None:
        """Copy the state of some cells to others, which are writable. What is kept at the ends of
        pages stays: cells move within what no page's end counts yet."""
        if self.layout.spec.ends:
            return
        self._planes.copy(self._group, self.slots(held, source), self.slots(held, target))

    def slots(self, held: GroupView, cells: Longs) -> Longs:
        """Where cells stand. They must be reserved and not let go."""
        pages = held.table[cells // self.page_tokens].astype(np.int64)
        return pages * self.page_tokens + cells % self.page_tokens

    def _stored(self, held: GroupView, first: int, cells: int) -> Longs:
        """Where what is kept of the cells [first, cells) stands, `first` the first of a page: each
        cell, or where pages have one row each page."""
        if not self.layout.spec.ends:
            return self.slots(held, np.arange(first, cells))
        last = -(-cells // self.page_tokens)
        return held.table[first // self.page_tokens : last].astype(np.int64)

    def _rows(self, first: int, cells: int) -> int:
        """How many rows that are."""
        if not self.layout.spec.ends:
            return cells - first
        return -(-cells // self.page_tokens) - first // self.page_tokens

    def read(self, held: GroupView, first: int, last: int) -> tuple[Floats, ...]:
        """What the cells [first, last) hold, as it is read back, plane by plane: (layers, heads,
        last - first, width) each. Keys and values of a latent plane are the same."""
        state = self._read(held, np.arange(first, last, dtype=np.int64))
        by_layer = [sides_of(self.layout, index, each) for index, each in enumerate(state)]
        planes = tuple(
            np.stack([side.codec.widen(side.stored) for side in plane]).swapaxes(1, 2)
            for plane in zip(*by_layer, strict=True)
        )
        return planes * 2 if self.layout.spec.latent else planes

    # -- compaction ----------------------------------------------------------------------------

    def check_compact(self, held: GroupView, cells: Ints) -> None:
        """Raise OckhamError unless these are cells that may be kept, in this order."""
        if self.layout.window is not None:
            raise OckhamError(
                f"a group of layers with a window of {self.layout.window} cells cannot be "
                "compacted: its rows see the latest cells by number."
            )
        heads, layers = self.layout.spec.uniform.heads, len(self.layout.layers)
        if cells.shape[:-1] not in {(), (heads,), (layers, heads)}:
            raise OckhamError(
                f"cells to keep are (n,), ({heads}, n) or ({layers}, {heads}, n), not "
                f"{cells.shape}."
            )
        gaps = _gaps(cells)
        if gaps is not None and (gaps.min() or (gaps % BLOCK_KEYS).any()):
            raise OckhamError(
                f"the gaps of {gaps.tolist()} cells before what the heads keep must be of whole "
                f"blocks of {BLOCK_KEYS}, and one head must have none."
            )
        own = cells if gaps is None else cells[np.arange(cells.shape[-1]) >= gaps[..., None]]
        if own.size and not 0 <= int(own.min()) <= int(own.max()) < held.length:
            raise OckhamError(f"cells to keep must be among the {held.length} that are held.")
        if held.gaps is not None and ((cells >= 0) & (cells < held.gaps[..., None])).any():
            raise OckhamError("a head cannot keep a cell that it has dropped before.")

    def check_merges(self, held: GroupView, cells: Ints, merges: Merges) -> None:
        """Raise OckhamError unless cells that are held can so go on in those that stay."""
        check_merges(merges, self.layout, held, cells)

    def _read(self, held: GroupView, cells: Longs) -> Array:
        """The stored bits of cells, as `Planes.read` gives them. In gaps they mean nothing."""
        return self._planes.read(self._group, self.slots(held, cells))

    def copies(
        self, held: GroupView, cells: Ints, apart: bool, merges: Merges | None = None
    ) -> int:
        """Free pages that keeping `cells` alone takes: shared pages are never written."""
        first, last = self._written(cells, apart, merges)
        return int((self.refs[held.table[first:last]] > 1).sum())

    def compact(
        self,
        held: GroupView,
        cells: Ints,
        tokens: int,
        apart: bool,
        merges: Merges | None = None,
    ) -> None:
        """Keep `cells`, (n,), (heads, n) or (layers, heads, n), in this order at the front, and
        free the rest, of which some go on in those. The view stands for `tokens` tokens. `apart`:
        it shares no page after it."""
        kept = held.places(tokens)
        first, last = self._written(cells, apart, merges)
        merged = None
        if merges is not None:
            merged = Merged.of(lambda own: self._read(held, own), self.layout, cells, merges)
        source = np.arange(first * self.page_tokens, cells.shape[-1], dtype=np.int64)
        before = self.slots_of(held, cells[..., source])
        pages = held.table[first : held.pages].copy()
        target = pages[: last - first].copy()
        shared = self.refs[target] > 1
        target[shared] = self.take(int(shared.sum()))
        held.table[first:last] = target
        held.pages, held.length = last, cells.shape[-1]
        after = self.slots(held, source)
        if cells.ndim == 1:
            self._planes.copy(self._group, before, after)
        elif cells.ndim == 2:
            for head, slots in enumerate(before):
                self._planes.copy(self._group, slots, after, head)
        else:
            moves = (cells[..., source] >= 0) & (before != after)
            for index, head in np.ndindex(*moves.shape[:2]):
                own = moves[index, head]
                slots = before[index, head][own]
                self._planes.copy(self._group, slots, after[own], head, index)
        if merged is not None:
            stored = self._read(held, merged.changed)
            merged.put(stored, self.layout)
            self._planes.write(self._group, self.slots(held, merged.changed), stored)
        self.drop(pages[~np.isin(pages, target)])
        held.shared_tail = self._shares_tail(held)
        held.dropped = tokens - held.length
        held.kept = _taken(kept, cells)
        held.gaps = _gaps(cells)

    def slots_of(self, held: GroupView, cells: Ints) -> Longs:
        """Where cells of any shape stand."""
        return self.slots(held, cells.astype(np.int64))

    def _written(self, cells: Ints, apart: bool, merges: Merges | None) -> tuple[int, int]:
        """The entries of the page table, [first, last), whose pages change if `cells` are kept:
        all but those whose cells stay where they are, as they are, or all where the view is to
        stand `apart`."""
        count = cells.shape[-1]
        if apart:
            return 0, -(-count // self.page_tokens)
        in_place = np.arange(count, dtype=np.int32)
        moves = (cells != in_place) & (cells >= 0)
        moved = np.flatnonzero(moves.any(axis=tuple(range(cells.ndim - 1))))
        last = -(-count // self.page_tokens)
        first = int(moved[0]) // self.page_tokens if len(moved) else last
        if merges is not None and len(merges.into):
            first = min(first, int(merges.into.min()) // self.page_tokens)
        return first, last

    # -- export --------------------------------------------------------------------------------

    def export(self, held: GroupView) -> tuple[int, bytes]:
        """The first cell that is held, and the planes' bits of all cells from there on."""
        first = min(held.let_go * self.page_tokens, held.length)
        slots = self._stored(held, first, held.length)
        return first, self._planes.read(self._group, slots).tobytes()

    def check_import(self, first: int, cells: int, data: bytes) -> bool:
        """Whether exported cells have the size that they claim."""
        aligned = first % self.page_tokens == 0 or first == cells
        expected = self._rows(first, cells) * (self.layout.page_bytes // self.layout.page_rows)
        return 0 <= first <= cells and aligned and len(data) == expected

    def import_need(self, first: int, cells: int) -> int:
        """Free pages that exported cells take."""
        return -(-cells // self.page_tokens) - first // self.page_tokens

    def import_(self, held: GroupView, first: int, cells: int, data: bytes) -> None:
        """Let an empty view hold exported cells."""
        skip, pages = first // self.page_tokens, -(-cells // self.page_tokens)
        held.table[:skip] = -1
        held.let_go = skip
        held.table[skip:pages] = self.take(pages - skip)
        held.pages, held.length = pages, cells
        shape = self.layout.stored_shape(self._rows(first, cells))
        state = np.frombuffer(data, self.layout.spec.uniform.stored).reshape(shape)
        self._planes.write(self._group, self._stored(held, first, cells), state)

    # -- checks --------------------------------------------------------------------------------

    def check_integrity(self, views: Iterable[GroupView], kept: Ints) -> None:
        """Raise OckhamError unless `views` and the pages `kept` by a Reuse are exactly what the
        pool thinks is held."""
        holders = Counter(kept.tolist())
        for held in views:
            if held.length > held.pages * self.page_tokens:
                raise OckhamError(f"a view holds {held.length} cells in {held.pages} pages.")
            pages = held.table[held.let_go : held.pages]
            holders.update(pages[pages >= 0].tolist())
        refs = {p: int(n) for p, n in enumerate(self.refs) if n}
        if refs != dict(holders):
            raise OckhamError(f"reference counts of group {self._group} do not match the views.")
        if sorted([*self.free, *refs]) != list(range(self.layout.pages)):
            raise OckhamError(
                f"pages of group {self._group} were lost, or are free and held at once."
            )

    # -- inside --------------------------------------------------------------------------------

    def _shares_tail(self, held: GroupView) -> bool:
        """Whether the page of cell `length` holds cells, and someone else holds it too."""
        if held.length % self.page_tokens == 0:
            return False
        return int(self.refs[held.table[held.length // self.page_tokens]]) > 1

    def _copies_tail(self, held: GroupView) -> bool:
        return held.shared_tail and self._shares_tail(held)

    def _copy_tail(self, held: GroupView) -> None:
        entry = held.length // self.page_tokens
        old, new = int(held.table[entry]), self.free.pop()
        self.refs[old] -= 1
        self.refs[new] = 1
        held.table[entry] = new
        if self.layout.spec.ends:
            return  # nothing is kept of a page before its end
        offsets = np.arange(held.length % self.page_tokens, dtype=np.int64)
        source, target = old * self.page_tokens + offsets, new * self.page_tokens + offsets
        self._planes.copy(self._group, source, target)


def _taken(places: Ints, cells: Ints) -> Ints:
    """The places of the cells that are kept, -1 in gaps."""
    shape = np.broadcast_shapes(places.shape[:-1], cells.shape[:-1])
    wide = np.broadcast_to(places, (*shape, places.shape[-1]))
    own = np.broadcast_to(cells, (*shape, cells.shape[-1]))
    return np.where(own < 0, np.int32(-1), np.take_along_axis(wide, np.maximum(own, 0), axis=-1))


def _gaps(cells: Ints) -> Ints | None:
    """How many entries of -1 stand before what each head of each layer keeps: (layers, heads); None
    where there are none."""
    if cells.ndim != 3 or not cells.size or int(cells[..., 0].min()) >= 0:
        return None
    gaps: Ints = (cells < 0).sum(axis=-1, dtype=np.int32)
    return gaps
