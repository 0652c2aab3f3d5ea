"""What a page of state is called: by the tokens that it and all before it hold.

The name of a page is a chain of hashes, key_i = BLAKE2b(key_{i-1}, tokens of page i), from a root
that stands for whose state it is: numerics id, layout of the planes, page size and tenant. A name
carries all that went into its last link, and who looks a page up compares it, link by link: two
contexts whose keys were equal would still not be taken for each other.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
import numpy as np

from ockham.core.seams import Ints

KEY_BYTES = 16


class PageName(NamedTuple):
    """One full page. `tokens` are its own, as little-endian int32; `parent` is the key of the page
    before it, or the root."""

    key: bytes
    parent: bytes
    root: bytes
    tokens: bytes


class Identity(msgspec.Struct, frozen=True):
    """Whose state a store holds, and what one page of it takes in `layout`."""

    numerics_id: str
    layout: str
    page_tokens: int
    page_bytes: tuple[int, ...]
    """Of each layer group."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of a page of all groups, one after the other."""
        return sum(self.page_bytes)

    @property
    def digest(self) -> str:
        return _hash(msgspec.json.encode(self)).hex()

    def root(self, salt: str) -> bytes:
        """What the chains of a tenant begin with. The salt cannot be had back from it."""
        return _hash(msgspec.json.encode(self), salt.encode())

    def names(self, tokens: Ints, salt: str, first: int = 0) -> list[PageName]:
        """The names of all full pages of `tokens` from page `first` on."""
        root = key = self.root(salt)
        data = np.ascontiguousarray(tokens, "<i4").tobytes()
        page = 4 * self.page_tokens
        found = []
        for number in range(len(tokens) // self.page_tokens):
            own, parent = data[number * page : (number + 1) * page], key
            key = _hash(parent, own)
            if number >= first:
                found.append(PageName(key, parent, root, own))
        return found


def _hash(*parts: bytes) -> bytes:
    hashed = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        hashed.update(len(part).to_bytes(4, "little") + part)
    return hashed.digest()
