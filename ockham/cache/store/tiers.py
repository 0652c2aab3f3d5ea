"""The tiers below the pool: what leaves it goes to memory, what is computed goes to disk too, and
both come back by content.

The engine's thread copies pages out of the pool and into it; threads of their own write to the disk
and read from it. A `Fetch` is one prefix on its way back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from ockham.cache.native_tree import Tree
from ockham.cache.store.disk import DiskStore
from ockham.cache.store.fetch import Nothing, PageFetch
from ockham.cache.store.memory import MemoryTier
from ockham.cache.store.names import Identity, Namer, PageName
from ockham.cache.store.reader import Reader
from ockham.cache.store.stats import TierStats
from ockham.cache.store.writer import Writer
from ockham.core.arrays import Bytes, Ints
from ockham.core.seams import Fetch, PagePool
from ockham.kernels.base import Planes

PATIENCE_S = 5.0
"""A disk that gives nothing for so long is not waited for."""
BESIDE_STEPS_BYTES = 16 << 20
"""Copied into the pool between two steps while others run, and out of it for one sequence."""
BACKED_BYTES = 256 << 20
"""Of the pool, what is backed with memory before anything is read."""
NEW_PAGES = 64
"""Backed beside those: a prompt that is read goes on."""
RETRY = 1.05
"""After a fetch is skipped as too slow, the believed disk rate is raised by this factor, so that
the disk is retried occasionally."""
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
        self.writer = None if disk is None else Writer(disk)
        self.reader = None if disk is None else Reader(disk, self._back(len(disk)))
        self._groups = range(len(identity.page_bytes))
        self._all = (1 << len(self._groups)) - 1
        """All groups."""
        self._starts = np.cumsum([0, *identity.page_bytes])[:-1].tolist()
        """Where each group's page begins in a row."""
        self._row_bytes = identity.payload_bytes if disk is None else disk.slot_bytes
        self._names: list[dict[int, PageName | None]] = [{} for _ in self._groups]
        """Of each group, the pages that the tree holds, with their names once they are full."""
        self._fetches: list[PageFetch] = []
        self._stats = TierStats()

    def _back(self, pages: int) -> Iterator[None]:
        """Have the pool's first pages backed with memory before the first prompts are read into
        them: the system takes longer for that than for reading."""
        most = min(pages + NEW_PAGES, BACKED_BYTES // self.identity.payload_bytes)
        for group, layers in enumerate(self._layers):
            for layer in range(layers):
                self._planes.back(group, layer, min(most, self._pool.sizes[group]))
                yield

    # -- out of the pool -----------------------------------------------------------------------

    def kept(self, tokens: Ints, salt: str, tables: Sequence[Ints], taken: Sequence[Ints]) -> None:
        """The cells of `tokens` are valid and stand in `tables`; the tree now holds `taken` too."""
        names = self._namer.names(tokens, salt)
        if self.memory is not None:
            self._remember(names, tables, taken)
        if names and self.disk is not None and self.writer is not None:
            self._write_through(self.disk, self.writer, names, tables)

    def _write_through(
        self, disk: DiskStore, writer: Writer, names: list[PageName], tables: Sequence[Ints]
    ) -> None:
        there = [(tables[g][: len(names)] >= 0).astype(np.int64) << g for g in self._groups]
        present: list[int] = np.sum(there, axis=0).tolist()
        new = [
            i
            for i, name in enumerate(names)
            if present[i] & ~disk.groups_of(name.key) and not writer.has(name.key)
        ]
        chosen = new[: min(writer.room, BESIDE_STEPS_BYTES // self._row_bytes + 1)]
        writer.skipped += len(new) - len(chosen)
        keys = [name.key for name in names]
        if not chosen:
            writer.touch(keys)
            return
        whole = all(present[i] == self._all for i in chosen)
        make = np.empty if whole else np.zeros  # what no group fills would be anything
        rows = make((len(chosen), self._row_bytes), np.uint8)
        for group in self._groups:
            pages = tables[group][chosen]
            self._copy_out(group, pages, rows)
        writer.offer(
            [names[i] for i in chosen],
            [present[i] for i in chosen],
            list(rows),
            keys[: chosen[-1] + 1],
        )

    def _copy_out(self, group: int, pages: Ints, rows: Bytes) -> None:
        """Copy a group's pages to its place in the rows, but for those that are -1."""
        at = self._starts[group]
        if (pages >= 0).all():
            self._planes.read_pages(group, pages.astype(np.int64), rows, at)
            return
        for i in np.flatnonzero(pages >= 0).tolist():
            self._planes.read_pages(group, pages[i : i + 1].astype(np.int64), rows[i : i + 1], at)

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
        """The tree is about to give up these pages of each group: they go to memory."""
        if self.memory is None:
            return
        found: dict[bytes, tuple[PageName, dict[int, int]]] = {}
        for group in self._groups:
            for page in pages[group].tolist():
                name = self._names[group].pop(page, None)
                if name is not None:
                    found.setdefault(name.key, (name, {}))[1][group] = page
        for name, held in reversed(found.values()):  # of a context, its end is the first to go
            row = np.zeros((1, self._row_bytes), np.uint8)
            for group, page in held.items():
                self._copy_out(group, np.array([page], np.int32), row)
            self.memory.put(name, sum(1 << group for group in held), row[0])

    # -- back into the pool --------------------------------------------------------------------

    def fetch(self, tree: Tree, tokens: Ints, salt: str) -> Fetch | None:
        """Begin to bring back what follows the first of these tokens that the tree has.

        None if another is bringing back a part of it: then ask again."""
        first = tree.match(salt, tokens, touch=False).tokens // self.identity.page_tokens
        names = self._namer.names(tokens, salt)[first:]
        if not names or self._source(names[0]) is None:
            return Nothing(_reach(tree, tokens, salt))
        if any(names[0].key in fetch.keys for fetch in self._fetches):
            return None
        sources: list[tuple[int, Bytes] | int] = []
        for name in names:
            source = self._source(name)
            if source is None:
                break
            sources.append(source)
        names = names[: len(sources)]
        from_disk = [n for n, s in zip(names, sources, strict=True) if isinstance(s, int)]
        if not self._worth(first, len(names), len(from_disk)):
            self._stats.not_worth += 1
            return Nothing(_reach(tree, tokens, salt))
        read = self.reader.start(from_disk) if self.reader is not None and from_disk else None
        fetch = PageFetch(
            tokens, salt, first, names, sources, read, len(self._groups), self._cancel
        )
        self._fetches.append(fetch)
        return fetch

    def _source(self, name: PageName) -> tuple[int, Bytes] | int | None:
        """Where a page is: its groups and bytes in memory, its groups on disk, or nowhere."""
        found = None if self.memory is None else self.memory.get(name)
        if found is not None:
            return found
        return (self.disk.groups_of(name.key) if self.disk is not None else 0) or None

    def _worth(self, first: int, pages: int, from_disk: int) -> bool:
        """Whether reading is expected to be faster than computing."""
        rate = None if self.reader is None else self.reader.bytes_per_s
        if not from_disk or rate is None or self.reader is None:
            return True
        size = self.identity.page_tokens
        computing_s = self._seconds(first * size, pages * size)
        if computing_s is None or from_disk * self._row_bytes / rate < computing_s:
            return True
        self.reader.bytes_per_s = rate * RETRY
        return False

    def advance(self, tree: Tree, beside_steps: bool) -> None:
        """Take in what has arrived. `beside_steps`: others run, and should not be held up."""
        left = BESIDE_STEPS_BYTES if beside_steps else None
        for fetch in list(self._fetches):
            most = None if left is None else left // self._row_bytes + 1
            took = self._take_in(fetch, most)
            if took:
                fetch.progress_s = time.monotonic()
            elif time.monotonic() - fetch.progress_s > PATIENCE_S:
                fetch.stopped = True
            if fetch.stopped:
                self._finish(fetch, tree)
            if left is not None:
                left -= took * self._row_bytes
                if left <= 0:
                    return

    def _take_in(self, fetch: PageFetch, most: int | None) -> int:
        """Bring pages that are ready into the pool; how many."""
        took = 0
        while not fetch.stopped and (most is None or took < most):
            found = self._next(fetch)
            if found is None:
                break
            took += self._put(fetch, *found)
        return took

    def _next(self, fetch: PageFetch) -> tuple[list[int], Bytes] | None:
        """The next pages of a fetch, if they are there: their groups, and a row for each."""
        if fetch.taken == len(fetch.names):
            fetch.stopped = True
            return None
        source = fetch.sources[fetch.taken]
        if not isinstance(source, int):
            return [source[0]], source[1][None]
        assert self.reader is not None, "a page on disk has a reader"
        assert fetch.read is not None, "a page on disk is being read"
        ended = fetch.read.ended  # asked first: what is ready then is all there will be
        found = self.reader.take(fetch.read)
        fetch.stopped = found is None and ended
        return found

    def _put(self, fetch: PageFetch, present: list[int], rows: Bytes) -> int:
        """Write pages into the pool; how many, until the fetch ends here."""
        done = 0
        number = fetch.first + fetch.taken
        for wanted, run in groupby(
            self._wanted(fetch, number + i, groups) for i, groups in enumerate(present)
        ):
            count = len(list(run))
            pages = None if wanted is None else self._pool.take([count * each for each in wanted])
            if pages is None:
                fetch.stopped = True
                break
            for group, own in enumerate(pages):
                if len(own):
                    self._planes.write_pages(
                        group, own.astype(np.int64), rows[done : done + count], self._starts[group]
                    )
                fetch.pages[group] += own.tolist() if len(own) else [-1] * count
            done += count
        fetch.taken += done
        return done

    def _wanted(self, fetch: PageFetch, number: int, present: int) -> tuple[int, ...] | None:
        """Of each group, 1 if its page `number` is to be taken in; None if one lacks that every
        later row sees."""
        size = self.identity.page_tokens
        end = (fetch.first + len(fetch.names)) * size
        wanted = []
        for group, window in enumerate(self._pool.windows):
            there = present >> group & 1
            if not window and not there:
                return None
            wanted.append(int(there and number >= (window and max(0, end + 1 - window) // size)))
        return tuple(wanted)

    def _finish(self, fetch: PageFetch, tree: Tree) -> None:
        """Enter what came into the tree, and let whoever waits go on."""
        size = self.identity.page_tokens
        begin, end = fetch.first * size, (fetch.first + fetch.taken) * size
        before = tree.match(fetch.salt, fetch.tokens[:end], touch=False)
        if fetch.taken and before.tokens >= begin:
            tables = [
                np.array([*table[: fetch.first].tolist(), *pages], np.int32)
                for table, pages in zip(before.tables, fetch.pages, strict=True)
            ]
            _, taken = tree.insert(fetch.salt, fetch.tokens[:end], tables)
            self._pool.hold(taken)
            if self.memory is not None:
                self._remember(self._namer.names(fetch.tokens[:end], fetch.salt), tables, taken)
                for name in fetch.names[: fetch.taken]:
                    self.memory.drop(name)
            self._stats.fetched += fetch.taken
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
        """Of each group, the pages of the pool that fetches hold."""
        held = [fetch.held() for fetch in self._fetches]
        return [
            np.concatenate([np.empty(0, np.int32), *(each[group] for each in held)])
            for group in self._groups
        ]

    # -- what stays on disk --------------------------------------------------------------------

    def flush(self, timeout_s: float) -> bool:
        """Wait until what is on its way to the disk is there; False if that took too long."""
        return self.writer is None or self.writer.flush(timeout_s)

    def stored(self, tokens: Ints, salt: str) -> int:
        """How many of the first tokens stand on disk, in full pages."""
        if self.disk is None:
            return 0
        held = [bool(self.disk.groups_of(n.key)) for n in self._namer.names(tokens, salt)]
        return (*held, False).index(False) * self.identity.page_tokens

    def pin(self, prefixes: Sequence[tuple[Ints, str]]) -> list[int]:
        """Let exactly the full pages of these tokens, each with its key of state, stay on disk, the
        first prefixes first; how many tokens of each may stay. Raises StoreError."""
        if self.disk is None:
            return [0] * len(prefixes)
        keys: dict[bytes, None] = {}
        pinned = []
        for tokens, salt in prefixes:
            names = self._namer.names(tokens, salt)
            new = [name.key for name in names if name.key not in keys]
            room = self.disk.most_pinned - len(keys)
            keys.update(dict.fromkeys(new[:room]))
            pinned.append((len(names) - max(0, len(new) - room)) * self.identity.page_tokens)
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
            self.reader.close(CLOSE_S)
            self.writer.close(CLOSE_S)
            self.disk.close()


def _reach(tree: Tree, tokens: Ints, salt: str) -> int:
    """Of the tokens before the last, which is computed in any case, how many the tree has."""
    return tree.match(salt, tokens[:-1], touch=False).tokens
