"""The tiers below the pool: what leaves it goes to memory, what is computed goes to disk too, and
both come back by content.

The engine's thread copies pages out of the pool and into it; threads of their own write to the disk
and read from it. A `Fetch` is one prefix on its way back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, takewhile

import numpy as np

from ockham.cache.native_tree import Tree
from ockham.cache.store.cuts import Cuts
from ockham.cache.store.disk import DiskStore
from ockham.cache.store.fetch import Item, Nothing, PageFetch, Placing
from ockham.cache.store.memory import MemoryTier
from ockham.cache.store.names import Identity, Namer, PageName, part_of
from ockham.cache.store.reader import Reader
from ockham.cache.store.section import Section
from ockham.cache.store.stats import TierStats
from ockham.cache.store.writer import Writer
from ockham.core.arrays import Bytes, Ints
from ockham.core.seams import Fetch, PagePool
from ockham.kernels.base import Planes

PATIENCE_S = 5.0
"""A disk that gives nothing for so long is not waited for."""
BESIDE_STEPS_BYTES = 16 << 20
"""Copied into the pool between two steps while others run, and of pages out of it for one sequence:
so much, or less than a page more. What of checkpoints is copied out, in parts, counts with what
comes in."""
BACKED_BYTES = 256 << 20
"""Of the pool, what is backed with memory before anything is read."""
NEW_PAGES = 64
"""Backed beside those: a prompt that is read goes on."""
RETRY = 1.05
"""After a fetch is skipped as too slow, the believed disk rate is raised by this factor, so that
the disk is retried occasionally."""
QUEUE_BYTES = 64 << 20
"""Copies that may wait for the disk, if a checkpoint takes less. What does not fit is not
written."""
CLOSE_S = 2.0


class Tiers:
    """Memory and disk below one pool; either may be missing. `layers` are those of each group.

    `seconds(first, tokens)` is how long computing so many tokens from cell `first` on would take,
    None while that is not known.
    """

    def __init__(
        self,
        pool: PagePool,
        planes: Planes,
        layers: Sequence[int],
        identity: Identity,
        memory: MemoryTier | None,
        disk: DiskStore | None,
        seconds: Callable[[int, int], float | None],
    ) -> None:
        self._pool, self._planes, self.identity = pool, planes, identity
        self._layers, self._namer = layers, Namer(identity)
        self.memory, self.disk, self._seconds = memory, disk, seconds
        self.writer = None
        if disk is not None:
            self.writer = Writer(disk, max(QUEUE_BYTES, 2 * identity.checkpoint_bytes))
        self.reader = None if disk is None else Reader(disk, self._back(len(disk)))
        self._groups = range(len(identity.page_bytes))
        self._together = Section(planes, identity.together, identity.page_bytes)
        self._apart = Section(planes, identity.apart, identity.page_bytes)
        self.cuts = None
        if disk is not None and self.writer is not None and identity.apart:
            self.cuts = Cuts(
                pool, self._apart, self.writer, identity.payload_bytes, disk.slot_bytes
            )
        self._names: list[dict[int, PageName | None]] = [{} for _ in self._groups]
        """Of each group, the pages that the tree holds, with their names once they are full."""
        self._fetches: list[PageFetch] = []
        self._stats = TierStats()

    def _back(self, pages: int) -> Iterator[None]:
        """Have the pool's first pages backed with memory before the first prompts are read into
        them: the system takes longer for that than for reading."""
        apart, most = self.identity.apart, pages + NEW_PAGES
        for group, layers in enumerate(self._layers):
            bytes_ = self.identity.payload_bytes
            if group in apart:
                bytes_ = self.identity.checkpoint_bytes
            count = min(most, max(1, BACKED_BYTES // bytes_), self._pool.sizes[group])
            for layer in range(layers):
                self._planes.back(group, layer, count)
                yield

    # -- out of the pool -----------------------------------------------------------------------

    def kept(self, tokens: Ints, salt: str, tables: Sequence[Ints], taken: Sequence[Ints]) -> None:
        """The cells of `tokens` are valid and stand in `tables`; the tree now holds `taken` too."""
        names = self._namer.names(tokens, salt)
        if self.memory is not None:
            self._remember(names, tables, taken)
        if names and self.disk is not None and self.writer is not None:
            room = self.writer.room
            if self.cuts is not None:
                room -= self.cuts.parts
                room -= self._write_checkpoint(self.cuts, self.writer, room, names, tables)
            self._write_through(self.disk, self.writer, room, names, tables)

    def _write_through(
        self,
        disk: DiskStore,
        writer: Writer,
        room: int,
        names: list[PageName],
        tables: Sequence[Ints],
    ) -> None:
        section = self._together
        present: list[int] = section.present(tables, len(names)).tolist()
        new = [
            i
            for i, name in enumerate(names)
            if present[i] & ~disk.groups_of(name.key) and not writer.has(name.key)
        ]
        chosen = new[: min(room, BESIDE_STEPS_BYTES // disk.slot_bytes + 1)]
        writer.skipped += len(new) - len(chosen)
        keys = [name.key for name in names]
        if not chosen:
            writer.touch(keys)
            return
        whole = all(present[i] == section.every for i in chosen)
        make = np.empty if whole else np.zeros  # what no group fills would be anything
        rows = make((len(chosen), disk.slot_bytes), np.uint8)
        for group in section.groups:
            section.copy_out(group, tables[group][chosen], rows)
        writer.offer(
            [names[i] for i in chosen],
            [present[i] for i in chosen],
            list(rows),
            keys[: chosen[-1] + 1],
        )

    def _write_checkpoint(
        self,
        cuts: Cuts,
        writer: Writer,
        room: int,
        names: list[PageName],
        tables: Sequence[Ints],
    ) -> int:
        """Send what goes on from the end of the last full page on its way to the disk, if it is
        there; how many pages' room that takes."""
        length = len(names)
        took = 0
        present: list[int] = self._apart.present(tables, length).tolist()
        for i in range(min(self._first(g, length) for g in self._apart.groups), length):
            needed = sum(1 << g for g in self._apart.groups if i >= self._first(g, length))
            if needed & ~present[i]:
                continue
            parts = self.identity.parts(names[i])
            if not needed & ~self._source_on_disk(parts):
                writer.touch([part.key for part in parts])
                continue
            if cuts.has(parts[0].key) or any(writer.has(part.key) for part in parts):
                continue
            if len(parts) > room - took:
                writer.skipped += len(parts)
                continue
            pages = {g: int(tables[g][i]) for g in self._apart.groups if present[i] >> g & 1}
            cuts.begin(parts, present[i], pages)
            took += len(parts)
        return took

    def _first(self, group: int, pages: int) -> int:
        """The first page that the row after so many full pages sees in a group."""
        window, size = self._pool.windows[group], self.identity.page_tokens
        return max(0, pages * size + 1 - window) // size if window else 0

    def _remember(
        self, names: list[PageName], tables: Sequence[Ints], taken: Sequence[Ints]
    ) -> None:
        """Which pages of the tree have which content, for when it lets go of them."""
        for group in self._groups:
            of = self._names[group]
            for page in taken[group].tolist():
                of.setdefault(page, None)
            for name, page in zip(
                reversed(names), tables[group][: len(names)][::-1].tolist(), strict=True
            ):
                if page in of:
                    if of[page] is not None:
                        break  # and so do those before it
                    of[page] = name

    def letting_go(self, pages: Sequence[Ints]) -> None:
        """The tree is about to give up these pages of each group: they go to memory. A checkpoint
        that is on its way to the disk is copied at once, so that its pages are free."""
        if self.cuts is not None:
            self.cuts.free(pages)
        if self.memory is None:
            return
        for section in (self._together, self._apart):
            found: dict[bytes, tuple[PageName, dict[int, int]]] = {}
            for group in section.groups:
                for page in pages[group].tolist():
                    name = self._names[group].pop(page, None)
                    if name is not None:
                        found.setdefault(name.key, (name, {}))[1][group] = page
            for name, held in reversed(found.values()):  # of a context, its end is the first to go
                row = np.zeros((1, section.row_bytes), np.uint8)
                for group, page in held.items():
                    section.copy_out(group, np.array([page], np.int32), row)
                called = name if section is self._together else self.identity.parts(name)[0]
                self.memory.put(called, sum(1 << group for group in held), row[0])

    # -- back into the pool --------------------------------------------------------------------

    def fetch(self, tree: Tree, tokens: Ints, salt: str) -> Fetch | None:
        """Begin to bring back what follows the first of these tokens that the tree has.

        None if another is bringing back a part of it: then ask again."""
        size = self.identity.page_tokens
        first = tree.match(salt, tokens, touch=False).tokens // size
        names = self._namer.names(tokens, salt)
        agreed, tables = tree.agreed(salt, tokens)
        held = [t[: agreed // size].tolist() + [-1] * (len(names) - agreed // size) for t in tables]
        items = self._lacking(names, held, first)
        if not items:
            return Nothing(_reach(tree, tokens, salt))
        if any(items[0].names[0].key in fetch.keys for fetch in self._fetches):
            return None
        pages = max(item.number for item in items) + 1
        from_disk = [n for item in items if isinstance(item.source, int) for n in item.names]
        if not self._worth(first, pages - first, len(from_disk)):
            self._stats.not_worth += 1
            return Nothing(_reach(tree, tokens, salt))
        read = self.reader.start(from_disk) if self.reader is not None and from_disk else None
        fetch = PageFetch(
            tokens[: pages * size], salt, first, items, read, len(self._groups), self._cancel
        )
        self._fetches.append(fetch)
        return fetch

    def _lacking(self, names: list[PageName], held: Sequence[list[int]], first: int) -> list[Item]:
        """What is to be brought back so that a row can go on from the end of the last page for
        which that is possible, if it is one after the first `first`. `held` are the pages that the
        pool has of this context, -1 where it has none."""
        together, windows = self._together, self._pool.windows
        always = sum(1 << group for group in together.groups if not windows[group])
        """What every later row sees."""
        items: list[Item] = []
        there: list[int] = []
        """Of each page, the groups that stand together and are here or can be."""
        for number, name in enumerate(names):
            have = sum(1 << group for group in together.groups if held[group][number] >= 0)
            if have != together.every and number >= first:
                source = self._source([name])
                if source is not None:
                    have |= source if isinstance(source, int) else source[0]
                if always & ~have:
                    break
                if source is not None:
                    items.append(Item(number, together, [name], source))
            there.append(have)
        seen = self._all_seen(there)
        for pages in range(len(there), first, -1):
            if not seen[pages - 1]:
                continue
            ends = self._checkpoint(pages, names, held)
            if ends is not None:
                return [item for item in items if item.number < pages] + ends
        return []

    def _all_seen(self, there: Sequence[int]) -> list[bool]:
        """Of each page, whether the row after it finds all that it sees of the groups that stand
        together; `there` are the groups of each page. Those without a window have every page."""
        found = [True] * len(there)
        for group in self._together.groups:
            if not self._pool.windows[group]:
                continue
            run = 0  # pages without a gap
            for number, groups in enumerate(there):
                run = run + 1 if groups >> group & 1 else 0
                if number + 1 - self._first(group, number + 1) > run:
                    found[number] = False
        return found

    def _checkpoint(
        self, pages: int, names: list[PageName], held: Sequence[list[int]]
    ) -> list[Item] | None:
        """What is to be brought back of the groups that stand apart for the row after so many
        pages; None if it is nowhere."""
        items = []
        groups = self._apart.groups
        for number in range(min((self._first(g, pages) for g in groups), default=pages), pages):
            seen = [g for g in groups if number >= self._first(g, pages)]
            lacking = sum(1 << group for group in seen if held[group][number] < 0)
            if not lacking:
                continue
            source = self._source([part_of(names[number], 0)])
            if source is None:
                return None
            parts = self.identity.parts(names[number])
            source = self._source(parts)
            if source is None or lacking & ~(source if isinstance(source, int) else source[0]):
                return None
            items.append(Item(number, self._apart, parts, source))
        return items

    def _source(self, names: Sequence[PageName]) -> tuple[int, Bytes] | int | None:
        """Where a page is, or a checkpoint in parts: its groups and bytes in memory, its groups on
        disk, or nowhere."""
        found = None if self.memory is None else self.memory.get(names[0])
        if found is not None:
            return found
        return self._source_on_disk(names) or None

    def _source_on_disk(self, names: Sequence[PageName]) -> int:
        """The groups that the disk has of a page, or of a checkpoint in parts; 0 for none."""
        if self.disk is None:
            return 0
        first, *others = (self.disk.groups_of(name.key) for name in names)
        return first if all(groups == first for groups in others) else 0

    def _worth(self, first: int, pages: int, from_disk: int) -> bool:
        """Whether reading is expected to be faster than computing."""
        rate = None if self.reader is None else self.reader.bytes_per_s
        if not from_disk or rate is None or self.reader is None or self.disk is None:
            return True
        size = self.identity.page_tokens
        computing_s = self._seconds(first * size, pages * size)
        if computing_s is None or from_disk * self.disk.slot_bytes / rate < computing_s:
            return True
        self.reader.bytes_per_s = rate * RETRY
        return False

    def advance(self, tree: Tree, beside_steps: bool) -> None:
        """Take in what has arrived, and copy out what is on its way to the disk. `beside_steps`:
        others run, and should not be held up."""
        left = BESIDE_STEPS_BYTES if beside_steps else None
        if self.cuts is not None:
            took = self.cuts.go_on(left)
            if left is not None:
                left -= took
                if left <= 0:
                    return
        for fetch in list(self._fetches):
            took = self._take_in(fetch, left)
            if took:
                fetch.progress_s = time.monotonic()
            elif time.monotonic() - fetch.progress_s > PATIENCE_S:
                fetch.stopped = True
            if fetch.stopped:
                self._finish(fetch, tree)
            if left is not None:
                left -= took
                if left <= 0:
                    return

    def _take_in(self, fetch: PageFetch, most: int | None) -> int:
        """Bring what is ready into the pool until that is `most` bytes or more; how many it was."""
        took = 0
        while not fetch.stopped and (most is None or took < most):
            if fetch.taken == len(fetch.items):
                fetch.stopped = True
                break
            item = fetch.items[fetch.taken]
            if isinstance(item.source, int) and not self._arrived(fetch):
                break
            if item.section is self._apart:
                left = self.identity.checkpoint_bytes if most is None else most - took
                took += self._put_part(fetch, item, left)
            elif isinstance(item.source, int):
                alike = self._arrived_alike(fetch, item)
                took += self._put(fetch, alike, *fetch.take_rows(len(alike)))
            else:
                groups, row = item.source
                took += self._put(fetch, [item], [groups], row[None])
        return took

    def _arrived_alike(self, fetch: PageFetch, item: Item) -> list[Item]:
        """The next pages that came together, of which `item` is the first."""
        following = fetch.items[fetch.taken : fetch.taken + len(fetch.rows[0][1])]
        return list(takewhile(lambda each: _like(each, item), following))

    def _arrived(self, fetch: PageFetch) -> bool:
        """Whether something of the next item came from the disk."""
        assert fetch.read is not None, "a page on disk is being read"
        assert self.reader is not None, "a page on disk has a reader"
        if not fetch.rows:
            ended = fetch.read.ended  # asked first: what is ready then is all there will be
            found = self.reader.take(fetch.read)
            if found is None:
                fetch.stopped = ended
                return False
            fetch.rows.append(found)
        return True

    def _put_part(self, fetch: PageFetch, item: Item, most: int) -> int:
        """Write the next bytes of a checkpoint into the pool, `most` or somewhat more; how many,
        until the fetch ends here."""
        source = item.source
        present = source if isinstance(source, int) else source[0]
        placing = fetch.placing
        if placing is None:
            groups = self._wanted(fetch, item, present)
            pages = self._pool.take([int(group in groups) for group in self._groups])
            if pages is None:
                fetch.stopped = True
                return 0
            placing = fetch.placing = Placing({group: int(pages[group][0]) for group in groups})
        payload, start = self.identity.payload_bytes, placing.done_bytes
        if isinstance(source, int):
            held, rows = fetch.take_rows(max(1, most // payload))
            if any(present & ~groups for groups in held):  # it was written anew, with less
                fetch.stopped = True
                return 0
            data = rows[:, :payload].reshape(-1)[: self._apart.row_bytes - start]
        else:
            data = source[1][start : start + most]
        self._apart.part_in(placing.pages, start, data)
        placing.done_bytes += len(data)
        if placing.done_bytes == self._apart.row_bytes:
            fetch.placed()
        return len(data)

    def _put(self, fetch: PageFetch, items: list[Item], present: list[int], rows: Bytes) -> int:
        """Write items into the pool; how many bytes, until the fetch ends here."""
        done = 0
        section = items[0].section
        wanted = [self._wanted(fetch, i, p) for i, p in zip(items, present, strict=True)]
        for groups, run in groupby(wanted):
            count = len(list(run))
            need = [0] * len(self._groups)
            for group in groups:
                need[group] = count
            pages = self._pool.take(need)
            if pages is None:
                fetch.stopped = True
                break
            numbers = [item.number for item in items[done : done + count]]
            for group in groups:
                section.copy_in(group, pages[group], rows[done : done + count])
                fetch.pages[group].update(zip(numbers, pages[group].tolist(), strict=True))
            done += count
        fetch.taken += done
        return done * section.row_bytes

    def _wanted(self, fetch: PageFetch, item: Item, present: int) -> tuple[int, ...]:
        """The groups of which a page is to be taken in: those that a later row sees."""
        pages = len(fetch.tokens) // self.identity.page_tokens
        return tuple(
            group
            for group in item.section.groups
            if present >> group & 1 and item.number >= self._first(group, pages)
        )

    def _finish(self, fetch: PageFetch, tree: Tree) -> None:
        """Enter what came into the tree, and let whoever waits go on."""
        size = self.identity.page_tokens
        agreed, tables = tree.agreed(fetch.salt, fetch.tokens)
        shared = pages = agreed // size
        came = {i.number for i in fetch.items[: fetch.taken] if i.section is self._together}
        if all(self._pool.windows[group] for group in self._together.groups):
            pages = max((pages, *(number + 1 for number in came)))
        while pages in came:
            pages += 1
        if fetch.taken and pages > fetch.first:
            whole = [np.full(pages, -1, np.int32) for _ in self._groups]
            for group, table in enumerate(whole):
                table[:shared] = tables[group][:shared]
                for number, page in fetch.pages[group].items():
                    if number < pages and table[number] < 0:
                        table[number] = page
            tokens = fetch.tokens[: pages * size]
            _, taken = tree.insert(fetch.salt, tokens, whole)
            self._pool.hold(taken)
            if self.memory is not None:
                self._remember(self._namer.names(tokens, fetch.salt), whole, taken)
                for item in fetch.items[: fetch.taken]:
                    self.memory.drop(item.names[0])
            self._stats.fetched += len(came)
            fetch.settle(size, _reach(tree, fetch.tokens, fetch.salt))
        self._cancel(fetch)

    def _cancel(self, fetch: PageFetch) -> None:
        """Give up a fetch, or what is left of it."""
        if fetch.done:
            return
        fetch.done = True
        self._fetches.remove(fetch)
        if fetch.read is not None and self.reader is not None:
            self.reader.cancel(fetch.read)
        self._pool.drop(fetch.held())

    def wait(self, timeout_s: float) -> None:
        """Sleep until something has arrived, if anything is on its way."""
        reads = [fetch.read for fetch in self._fetches if fetch.read is not None]
        if reads and len(reads) == len(self._fetches) and self.reader is not None:
            self.reader.wait(reads, timeout_s)

    def held(self) -> list[Ints]:
        """Of each group, the pages of the pool that fetches hold, and checkpoints on their way
        out."""
        held = [fetch.held() for fetch in self._fetches]
        held += [] if self.cuts is None else self.cuts.held()
        return [
            np.concatenate([np.empty(0, np.int32), *(each[group] for each in held)])
            for group in self._groups
        ]

    # -- what stays on disk --------------------------------------------------------------------

    def flush(self, timeout_s: float) -> bool:
        """Wait until what is on its way to the disk is there; False if that took too long."""
        if self.cuts is not None:
            self.cuts.go_on(None)
        return self.writer is None or self.writer.flush(timeout_s)

    def stored(self, tokens: Ints, salt: str) -> int:
        """How many of the first tokens stand on disk, in full pages after which a row can go on."""
        if self.disk is None:
            return 0
        names = self._namer.names(tokens, salt)
        held = [self.disk.groups_of(n.key) for n in names]
        there = held[: (*held, 0).index(0)]
        seen = self._all_seen(there)
        for pages in range(len(there), 0, -1):
            if seen[pages - 1] and self._parts_on_disk(names, pages) is not None:
                return pages * self.identity.page_tokens
        return 0

    def _parts_on_disk(self, names: list[PageName], pages: int) -> list[PageName] | None:
        """The parts of the checkpoint at the end of so many pages; None if some are not there."""
        found: list[PageName] = []
        groups = self._apart.groups
        for number in range(min((self._first(g, pages) for g in groups), default=pages), pages):
            if not self._source_on_disk([part_of(names[number], 0)]):
                return None
            parts = self.identity.parts(names[number])
            seen = sum(1 << g for g in groups if number >= self._first(g, pages))
            source = self._source_on_disk(parts)
            if seen & ~source:
                return None
            found += parts
        return found

    def pin(self, prefixes: Sequence[tuple[Ints, str]]) -> list[int]:
        """Let exactly the full pages of these tokens, each with its key of state, stay on disk, the
        first prefixes first; how many tokens of each may stay. Raises StoreError."""
        if self.disk is None:
            return [0] * len(prefixes)
        size = self.identity.page_tokens
        keys: dict[bytes, None] = {}
        pinned = []
        for tokens, salt in prefixes:
            names = self._namer.names(tokens, salt)
            if self.identity.apart:
                names = names[: self.stored(tokens, salt) // size]
            # A checkpoint comes first: without it the pages are of no use.
            ends = self._parts_on_disk(names, len(names)) or []
            new = [name.key for name in (*ends, *names) if name.key not in keys]
            room = self.disk.most_pinned - len(keys)
            if self.identity.apart and len(new) > room:
                pinned.append(0)
                continue
            keys.update(dict.fromkeys(new[:room]))
            pinned.append((len(names) - max(0, len(new) - room)) * size)
        self.disk.pin(keys)
        return pinned

    # -- the rest ------------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget what is in memory; the disk keeps what it has."""
        if self.memory is not None:
            self.memory.clear()

    def stats(self) -> TierStats:
        stats = TierStats(fetched=self._stats.fetched, not_worth=self._stats.not_worth)
        if self.memory is not None:
            stats.memory_pages, stats.memory_bytes = len(self.memory), self.memory.nbytes
            stats.memory_evicted = self.memory.evicted
        if self.disk is not None and self.writer is not None:
            disk = self.disk.stats()
            stats.disk_pages, stats.disk_bytes = disk.pages, disk.reserved_bytes
            stats.disk_limit_bytes, stats.disk_evicted = disk.limit_bytes, disk.evicted
            stats.bytes_read, stats.bytes_written = disk.bytes_read, disk.bytes_written
            stats.refused, stats.skipped = disk.refused, self.writer.skipped
        return stats

    def close(self) -> None:
        """Write what is on its way and let go of the directory."""
        if self.disk is not None and self.writer is not None and self.reader is not None:
            if self.cuts is not None:
                self.cuts.go_on(None)
            self.reader.close(CLOSE_S)
            self.writer.close(CLOSE_S)
            self.disk.close()


def _reach(tree: Tree, tokens: Ints, salt: str) -> int:
    """Of the tokens before the last, which is computed in any case, how many the tree has."""
    return tree.match(salt, tokens[:-1], touch=False).tokens


def _like(one: Item, other: Item) -> bool:
    """Whether one item is of the same section as another, on disk too, and has one row there."""
    return one.section is other.section and isinstance(one.source, int) and len(one.names) == 1
