"""What a page of state is called: by the tokens that it and all before it hold.

The name of a page is a chain of hashes, key_i = BLAKE2b(key_{i-1}, tokens of page i), from a root
that stands for whose state it is: numerics id, layout of the planes, page size and tenant. A name
carries all that went into its last link, and who looks a page up compares it, link by link: two
contexts whose keys were equal would still not be taken for each other.

Groups of layers that keep no keys and values stand apart from the others: what they keep is large,
and there at few places only. Such a checkpoint has the name of the page at whose end it is, and on
disk it is cut into parts of a page's size, key_{i,j} = BLAKE2b(key_i, "checkpoint", j).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ockham.core.arrays import Ints

KEY_BYTES = 16
_LATELY = 64
"""Contexts whose names are remembered."""


class PageName(NamedTuple):
    """One full page. `tokens` are its own, as little-endian int32; `parent` is the key of the page
    before it, or the root."""

    key: bytes
    parent: bytes
    root: bytes
    tokens: bytes


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose state a store holds, and what one page of it takes in `layout`."""

    numerics_id: str
    layout: str
    page_tokens: int
    page_bytes: tuple[int, ...]
    """Of each layer group."""
    apart: tuple[int, ...] = ()
    """The groups whose pages are checkpoints, some of them at most."""

    @property
    def together(self) -> tuple[int, ...]:
        """The groups that do not stand apart."""
        return tuple(g for g in range(len(self.page_bytes)) if g not in self.apart)

    @property
    def payload_bytes(self) -> int:
        """Bytes of a page of all groups that stand together, one after the other."""
        return sum(self.page_bytes[group] for group in self.together)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: a page of all groups that stand apart, one after the other."""
        return sum(self.page_bytes[group] for group in self.apart)

    @property
    def checkpoint_parts(self) -> int:
        """Of how many rows on disk a checkpoint is made."""
        return -(-self.checkpoint_bytes // self.payload_bytes)

    def parts(self, name: PageName) -> list[PageName]:
        """The names of the parts of the checkpoint at a page's end."""
        return [part_of(name, part) for part in range(self.checkpoint_parts)]

    @property
    def digest(self) -> str:
        return _hash(msgspec.json.encode(self)).hex()

    def root(self, salt: str) -> bytes:
        """What the chains of a tenant begin with. The salt cannot be had back from it."""
        return _hash(msgspec.json.encode(self), salt.encode())

    def names(self, tokens: Ints, salt: str, known: Sequence[PageName] = ()) -> list[PageName]:
        """The names of all full pages of `tokens`; `known` are those of the first ones."""
        root = known[0].root if known else self.root(salt)
        key = known[-1].key if known else root
        data, page = np.ascontiguousarray(tokens, "<i4").tobytes(), 4 * self.page_tokens
        found = list(known)
        for start in range(len(known) * page, len(data) - page + 1, page):
            own, parent = data[start : start + page], key
            key = _hash(parent, own)
            found.append(PageName(key, parent, root, own))
        return found


def part_of(name: PageName, part: int) -> PageName:
    """The name of one part of the checkpoint at a page's end."""
    key = _hash(name.key, b"checkpoint", part.to_bytes(4, "little"))
    return PageName(key, name.key, name.root, name.tokens)


class Namer:
    """The names of contexts that grow: what was named lately is not hashed again."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._lately: OrderedDict[tuple[str, bytes], tuple[Ints, list[PageName]]] = OrderedDict()
        """By tenant and first page, the tokens that were named last and their names."""

    def names(self, tokens: Ints, salt: str) -> list[PageName]:
        """As `Identity.names`."""
        size = self._identity.page_tokens
        begin = salt, tokens[:size].tobytes()
        before, names = self._lately.pop(begin, (tokens[:0], []))
        most = min(len(before), len(tokens)) // size
        same = before[: most * size] == tokens[: most * size]
        known = most if same.all() else int(np.argmin(same)) // size
        found = self._identity.names(tokens, salt, names[:known])
        self._lately[begin] = (before, names) if known == len(found) else (tokens, found)
        if len(self._lately) > _LATELY:
            self._lately.popitem(last=False)
        return found


def _hash(*parts: bytes) -> bytes:
    hashed = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        hashed.update(len(part).to_bytes(4, "little") + part)
    return hashed.digest()
