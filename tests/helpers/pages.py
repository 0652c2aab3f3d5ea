"""Pages of a store whose content follows from their names, so that anybody can check them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ockham.cache.store.disk import DiskStore
from ockham.cache.store.names import Identity, PageName
from ockham.core.arrays import Bytes

IDENTITY = Identity("bits", "here", 4, (96, 40))
BOTH = 0b11
"""Layer groups of a whole page."""


def names_of(tokens: Sequence[int], salt: str = "") -> list[PageName]:
    return IDENTITY.names(np.array(tokens, np.int32), salt)


def page_of(name: PageName, groups: int, row_bytes: int) -> Bytes:
    """What a page holds if these groups of it are there."""
    seed = hashlib.blake2b(bytes([groups]).join(name), digest_size=8).digest()
    return np.random.default_rng(list(seed)).integers(0, 256, row_bytes, np.uint8)


def put(store: DiskStore, names: Sequence[PageName], groups: int = BOTH) -> int:
    rows = [page_of(name, groups, store.slot_bytes) for name in names]
    return store.write(names, [groups] * len(names), rows)


def get(store: DiskStore, names: Sequence[PageName]) -> int:
    """How many of the first pages are there; each is checked to be what was put."""
    rows = np.zeros((len(names), store.slot_bytes), np.uint8)
    found = store.read(names, list(rows))
    payload = IDENTITY.payload_bytes
    for name, record, row in zip(names, found, rows, strict=False):
        expected = page_of(name, record.groups, store.slot_bytes)
        assert np.array_equal(row[:payload], expected[:payload])
    store.note_use(found)
    return len(found)


def entry_bytes(directory: Path) -> int:
    """What a page takes in a store."""
    store = DiskStore(directory / "probe", 1 << 20, IDENTITY)
    put(store, names_of(range(4)))
    nbytes = store.stats().bytes_written
    store.close()
    return nbytes
