"""The commit record of a page on disk: one entry of the store's index.

    magic 4, groups 4, used 8, key 16, parent 16, root 16, checksum of the page 16,
    tokens 4 * page_tokens, checksum of all this 8, zeros up to a multiple of 64

in little endian. `groups` has a bit for each layer group whose page is there (a sliding window may
have let go of one), and its highest bit says that the page is pinned; `used` orders the entries by
their last use. The checksums are XXH3: they find damage, at the speed of memory, and are no
protection against a forger.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from ockham.cache.store.names import PageName
from ockham.core.arrays import Bytes

MAGIC = b"OKP1"
_CHECKSUM_BYTES = 8
_PINNED = 1 << 31


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a page on disk."""

    name: PageName
    groups: int
    used: int
    checksum: bytes
    pinned: bool = False


class RecordFormat:
    """Records of pages of so many tokens."""

    def __init__(self, page_tokens: int) -> None:
        self._struct = struct.Struct(f"<4sIQ16s16s16s16s{4 * page_tokens}s")
        self._content_bytes = self._struct.size + _CHECKSUM_BYTES
        self.nbytes = -(-self._content_bytes // 64) * 64

    def pack(self, record: Record) -> bytes:
        name = record.name
        body = self._struct.pack(
            MAGIC,
            record.groups | (_PINNED if record.pinned else 0),
            record.used,
            name.key,
            name.parent,
            name.root,
            record.checksum,
            name.tokens,
        )
        packed = body + xxhash.xxh3_64_digest(body)
        return packed + bytes(self.nbytes - len(packed))

    def unpack(self, data: bytes | memoryview) -> Record | None:
        """None for what is no whole record: never written, torn, or damaged."""
        body = data[: self._struct.size]
        if len(body) < self._struct.size or bytes(body[:4]) != MAGIC:
            return None
        if bytes(data[self._struct.size : self._content_bytes]) != xxhash.xxh3_64_digest(body):
            return None
        _, groups, used, key, parent, root, checksum, tokens = self._struct.unpack(body)
        name = PageName(key, parent, root, tokens)
        return Record(name, groups & ~_PINNED, used, checksum, bool(groups & _PINNED))


def checksum_of(page: Bytes) -> bytes:
    """Of a page's bytes, contiguous."""
    return xxhash.xxh3_128_digest(page.data)
