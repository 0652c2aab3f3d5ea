"""Pages of state on disk, found again by what they hold.

    DIR/lock                 one engine at a time
    DIR/IDENTITY/store.json  whose state it is (names.Identity), of which IDENTITY is the digest
    DIR/IDENTITY/index       a record for each slot (record.py): what counts is what stands there
    DIR/IDENTITY/pages       the slots themselves

A page is written to a free slot, brought to the disk, and only then entered in the index. A record
must be whole, name the same tokens, tenant and numerics id, and have the page's checksum: anything
else is refused, forgotten and computed again. So a process may be killed, or the power go, at any
moment. When the limit is reached, the page goes that was used least recently; of one context the
last page counts as the oldest, since the others are of use without it. Pages that are pinned stay,
also after a restart. The state of other identities in the same directory is kept until its room is
needed. Whatever else stands in DIR is neither counted nor touched.

Calls may come from several threads: one that writes, one that reads, and who looks things up.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import msgspec
import numpy as np

from ockham.cache.store.names import Identity, PageName
from ockham.cache.store.others import INDEX, LOCK, MARKER, PAGES, STORES, Others
from ockham.cache.store.record import Record, RecordFormat, checksum_of
from ockham.cache.store.slots import SlotFile
from ockham.core.arrays import Bytes
from ockham.core.errors import OckhamError
from ockham.core.owned_files import hold, make_directory, make_own_directory, write_own

log = logging.getLogger("ockham.store")

GROW_BYTES = 64 << 20
"""Space that is reserved at a time."""


class StoreError(OckhamError):
    """A store that cannot be used, with the reason."""


class DiskStats(msgspec.Struct, kw_only=True):
    """What a store holds, and what it did since it was opened."""

    pages: int = 0
    reserved_bytes: int = 0
    limit_bytes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    refused: int = 0
    """Entries that were damaged, torn or another's."""
    evicted: int = 0


class DiskStore:
    """The pages of one identity in a directory that takes at most `most_bytes`.

    Raises StoreError if the directory cannot be used, is used by another engine, or the limit has
    no room for a page.
    """

    def __init__(self, directory: Path, most_bytes: int, identity: Identity) -> None:
        self.directory, self.identity = directory, identity
        self._format = RecordFormat(identity.page_tokens)
        self.slot_bytes = -(-identity.payload_bytes // 64) * 64
        self._entry_bytes = self.slot_bytes + self._format.nbytes
        self._most_bytes = most_bytes
        if most_bytes < self._entry_bytes:
            raise StoreError(
                f"a KV store of {most_bytes} bytes has no room for one page of "
                f"{self._entry_bytes}; raise kv_store_bytes."
            )
        self._lock = Lock()
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        """By key, what was used least recently first."""
        self._groups: dict[bytes, int] = {}
        self._pinned: set[bytes] = set()
        """Keys that stay; they may be of pages that are not there."""
        self._free: deque[int] = deque()
        self._reading: Counter[int] = Counter()
        self._used = 0
        self._stats = DiskStats(limit_bytes=most_bytes)
        self.writable = True
        try:
            make_directory(directory)
            with contextlib.ExitStack() as undo:
                self._holding = hold(directory / LOCK)
                undo.callback(os.close, self._holding)
                self._open(undo)
                undo.pop_all()
        except FileExistsError as error:  # what mkdir says of a file
            raise StoreError(
                f"the KV store {directory} cannot be used: it is no directory."
            ) from error
        except BlockingIOError as error:
            raise StoreError(
                f"the KV store {directory} is in use by another engine; give each its own "
                "directory."
            ) from error
        except OSError as error:
            raise StoreError(
                f"the KV store {directory} cannot be used: {error.strerror}."
            ) from error

    # -- opening -------------------------------------------------------------------------------

    def _open(self, undo: contextlib.ExitStack) -> None:
        own = self.directory / self.identity.digest
        self._others = Others(self.directory, own)
        if not make_own_directory(own) and not STORES.owns(own):
            self._begin_anew(own)
        # The marker comes first: what a kill leaves of the rest is then known to be a store's.
        write_own(own / MARKER, msgspec.json.encode(self.identity))
        STORES.make_private(own)
        os.utime(own)
        self._pages = SlotFile(own / PAGES, self.slot_bytes)
        undo.callback(self._pages.close)
        self._index = SlotFile(own / INDEX, self._format.nbytes)
        undo.callback(self._index.close)
        self._index.hold()
        self._slots = min(self._pages.slots, self._index.slots, self._most_slots())
        self._recover()
        self._pages.shrink(self._slots)
        self._index.shrink(self._slots)

    def _begin_anew(self, own: Path) -> None:
        """Remove pages without a sound store.json. The directory's name is the digest of this
        store's identity, so what stands there under the store's own names is a store's."""
        if any(os.scandir(own)):
            log.warning("%s is damaged and is begun anew.", own)
        STORES.remove(own, known=True)
        make_own_directory(own)

    def _recover(self) -> None:
        """Take up what the index says."""
        entries = self._index.slots
        table = np.zeros((entries, self._format.nbytes), np.uint8)
        self._index.read(range(entries), list(table))
        found: list[tuple[int, int, Record]] = []
        for slot in np.flatnonzero(table.any(axis=1)).tolist():
            record = self._format.unpack(table[slot].data)
            if record is not None and slot < self._slots:
                found.append((record.used, slot, record))
            elif record is None or slot < self._most_slots():
                self._stats.refused += 1
        kept: dict[int, bytes] = {}
        for used, slot, record in sorted(found, key=lambda each: each[:2]):
            key = record.name.key
            if key in self._slot_of:  # written twice: the later one counts
                del kept[self._slot_of.pop(key)]
            self._slot_of[key], self._groups[key] = slot, record.groups
            kept[slot] = key
            if record.pinned:
                self._pinned.add(key)
            self._used = max(self._used, used)
        self._free.extend(slot for slot in range(self._slots) if slot not in kept)
        if self._stats.refused:
            log.warning(
                "%d entries of the KV store %s are damaged and will be computed again.",
                self._stats.refused,
                self.directory,
            )

    # -- what there is -------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._slot_of)

    def groups_of(self, key: bytes) -> int:
        """A bit for each layer group whose page is there; 0 if there is none."""
        return self._groups.get(key, 0)

    def touch(self, keys: Iterable[bytes]) -> None:
        """Count pages of one context, in its order, as used."""
        with self._lock:
            for key in reversed(list(keys)):
                if key in self._slot_of:
                    self._slot_of.move_to_end(key)

    def stats(self) -> DiskStats:
        reserved = self._slots * self._entry_bytes
        return msgspec.structs.replace(
            self._stats, pages=len(self._slot_of), reserved_bytes=reserved
        )

    # -- writing -------------------------------------------------------------------------------

    def write(self, names: Sequence[PageName], groups: Sequence[int], rows: Sequence[Bytes]) -> int:
        """Keep pages; how many are there afterwards. `rows` are (slot_bytes,) each, the page first.

        What there is no room for is left out. If the disk fails, nothing more is written.
        """
        if not self.writable or not names:
            return 0
        with self._lock:
            new = [i for i, n in enumerate(names) if groups[i] & ~self.groups_of(n.key)]
            for i in new:  # what has fewer groups is replaced
                self._forget(names[i].key)
            slots = self._allocate(len(new))
        left_out = len(new) - len(slots)
        new = new[: len(slots)]
        try:
            self._clear(slots)
            self._pages.write(slots, [rows[i] for i in new])
            self._pages.sync()
            self._commit(
                slots, [names[i] for i in new], [groups[i] for i in new], [rows[i] for i in new]
            )
        except OSError as error:
            self.writable = False
            with self._lock:
                self._free.extend(slots)
            log.warning(
                "writing to the KV store %s failed (%s); nothing more is written to it.",
                self.directory,
                error.strerror,
            )
            return 0
        return len(names) - left_out

    def _commit(
        self,
        slots: Sequence[int],
        names: Sequence[PageName],
        groups: Sequence[int],
        rows: Sequence[Bytes],
    ) -> None:
        payload = self.identity.payload_bytes
        with self._lock:
            # The last page of a context is the first to go.
            used = [self._used + len(slots) - i for i in range(len(slots))]
            self._used += len(slots)
        records = [
            Record(name, held, at, checksum_of(row[:payload]), name.key in self._pinned)
            for name, held, at, row in zip(names, groups, used, rows, strict=True)
        ]
        self._write_records(slots, records)
        self._index.sync()
        with self._lock:
            for slot, record in reversed(list(zip(slots, records, strict=True))):
                self._slot_of[record.name.key] = slot
                self._groups[record.name.key] = record.groups
            self._stats.bytes_written += len(slots) * self._entry_bytes

    def _allocate(self, count: int) -> list[int]:
        """Up to `count` free slots, in their order."""
        while len(self._free) < count and (self._grow() or self._evict()):
            pass
        return sorted(self._free.popleft() for _ in range(min(count, len(self._free))))

    def _most_slots(self) -> int:
        return max(0, self._most_bytes - self._others.nbytes) // self._entry_bytes

    def _grow(self) -> bool:
        """Reserve more space, if the limit and the disk have any."""
        for path in self._others.oldest_first():
            if self._most_slots() > self._slots:
                break
            self._others.remove(path)
        more = min(max(1, GROW_BYTES // self._entry_bytes), self._most_slots() - self._slots)
        while more > 0:
            error = self._reserve(self._slots + more)
            if error is None:
                self._free.extend(range(self._slots, self._slots + more))
                self._slots += more
                return True
            if more == 1:
                log.warning(
                    "the KV store %s cannot grow beyond %d bytes (%s); it goes on with those.",
                    self.directory,
                    self._slots * self._entry_bytes,
                    error.strerror,
                )
                self._most_bytes = self._slots * self._entry_bytes
            more //= 2  # the disk may have room for less
        return False

    def _reserve(self, slots: int) -> OSError | None:
        """Make room for so many slots in all; what hindered it, and then nothing has changed."""
        try:
            self._pages.reserve(slots)
            self._index.reserve(slots)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._pages.shrink(self._slots)
            return error
        return None

    def _evict(self) -> bool:
        """Free the slot that was used least recently and is neither pinned nor read, if there is
        one."""
        pinned, found = [], None
        for key, slot in self._slot_of.items():
            if key in self._pinned:
                pinned.append(key)
            elif not self._reading[slot]:
                found = key
                break
        for key in pinned:  # so that they are not met again and again
            self._slot_of.move_to_end(key)
        if found is None:
            return False
        self._forget(found)
        self._stats.evicted += 1
        return True

    def _forget(self, key: bytes) -> None:
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            del self._groups[key]
            self._free.append(slot)

    def _clear(self, slots: Sequence[int]) -> None:
        empty = np.zeros(self._format.nbytes, np.uint8)
        self._index.write(slots, [empty] * len(slots))

    def _write_records(self, slots: Sequence[int], records: Sequence[Record]) -> None:
        packed = [np.frombuffer(self._format.pack(record), np.uint8) for record in records]
        self._index.write(slots, packed)

    # -- reading -------------------------------------------------------------------------------

    def will_read(self, names: Sequence[PageName]) -> None:
        """Ask the system to begin reading the pages of these names."""
        with self._lock:
            found = [self._slot_of.get(name.key) for name in names]
        with contextlib.suppress(OSError):
            self._pages.will_read([slot for slot in found if slot is not None])

    def read(self, names: Sequence[PageName], rows: Sequence[Bytes]) -> list[Record]:
        """Fill rows (slot_bytes,) with the pages of these names, up to the first that is not there
        or not whole; the records of those that were filled."""
        with self._lock:
            slots: list[int] = []
            for name in names:
                slot = self._slot_of.get(name.key)
                if slot is None:
                    break
                slots.append(slot)
            self._reading.update(slots)
        try:
            records = self._read_whole(names[: len(slots)], slots, rows[: len(slots)])
        finally:
            with self._lock:
                self._reading.subtract(slots)
        return records

    def _read_whole(
        self, names: Sequence[PageName], slots: Sequence[int], rows: Sequence[Bytes]
    ) -> list[Record]:
        table = np.zeros((len(slots), self._format.nbytes), np.uint8)
        try:
            self._index.read(slots, list(table))
            filled = self._pages.read(slots, rows)
        except OSError as error:
            log.warning("the KV store %s cannot be read (%s).", self.directory, error.strerror)
            return []
        payload, records = self.identity.payload_bytes, []
        for i, name in enumerate(names):
            record = self._format.unpack(table[i].data) if i < filled else None
            if (
                record is None
                or record.name != name
                or record.checksum != checksum_of(rows[i][:payload])
            ):
                self._refuse(name, slots[i])
                break
            records.append(record)
        self._stats.bytes_read += filled * self.slot_bytes
        return records

    def _refuse(self, name: PageName, slot: int) -> None:
        """Forget an entry that cannot be used."""
        with self._lock:
            self._stats.refused += 1
            if self._stats.refused == 1:
                log.warning(
                    "the KV store %s has an entry that is damaged or another's: it is computed "
                    "again, as will be any other.",
                    self.directory,
                )
            if self._slot_of.get(name.key) == slot:
                with contextlib.suppress(OSError):
                    self._clear([slot])
                self._forget(name.key)

    def note_use(self, records: Sequence[Record]) -> None:
        """Count pages of one context, in its order, as used; on the disk too, for the order after a
        restart."""
        self.touch(record.name.key for record in records)
        with self._lock:
            self._used += len(records)
            slots, noted = [], []
            for i, record in enumerate(records):
                slot = self._slot_of.get(record.name.key)
                if slot is not None and self._groups[record.name.key] == record.groups:
                    slots.append(slot)
                    pinned = record.name.key in self._pinned
                    noted.append(replace(record, used=self._used - i, pinned=pinned))
            with contextlib.suppress(OSError):
                self._write_records(slots, noted)

    # -- keeping -------------------------------------------------------------------------------

    @property
    def most_pinned(self) -> int:
        """Pages that may be pinned: the others are for what comes."""
        return self._most_slots() // 2

    def pin(self, keys: Collection[bytes]) -> None:
        """From now on exactly these pages are pinned. Raises StoreError if the disk fails."""
        with self._lock:
            changed = (self._pinned ^ set(keys)) & self._slot_of.keys()
            self._pinned = set(keys)
            slots = [self._slot_of[key] for key in changed]
            table = np.zeros((len(slots), self._format.nbytes), np.uint8)
            try:
                self._index.read(slots, list(table))
                records = [self._format.unpack(row.data) for row in table]
                marked = [
                    (slot, replace(record, pinned=record.name.key in self._pinned))
                    for slot, record in zip(slots, records, strict=True)
                    if record is not None
                ]
                self._write_records([slot for slot, _ in marked], [each for _, each in marked])
                self._index.sync()
            except OSError as error:
                raise StoreError(
                    f"the KV store {self.directory} cannot be written to: {error.strerror}."
                ) from error

    # -- checks --------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise OckhamError unless every slot is either free or stands for one whole record."""
        with self._lock:
            held = list(self._slot_of.values())
            if sorted([*held, *self._free]) != list(range(self._slots)):
                raise OckhamError("slots of the store were lost, or are free and held at once.")
            if self._slot_of.keys() != self._groups.keys():
                raise OckhamError("the store does not know the groups of its pages.")
            if self._slots * self._entry_bytes > self._most_bytes:
                raise OckhamError("the store is larger than its limit.")

    def close(self) -> None:
        """Let another engine have the directory."""
        self.writable = False
        self._pages.close()
        self._index.close()
        os.close(self._holding)
