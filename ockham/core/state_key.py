"""The key under which a sequence's state is kept and found: whose it is, and what made it.

State may be shared by sequences of one tenant that were computed alike. A request under which the
model computes something else (fewer cells, other blocks, fewer layers, an adapter) has a key of its
own, in the pool and on disk, so that no other request ever reads its state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

_MARK = "\x1e"
"""Begins a key that is more than a salt."""


def state_key(salt: str, altering: Sequence[str] = ()) -> str:
    """The key of state under a tenant's `salt` that techniques have altered, each described by one
    text. No two pairs of arguments have the same key; without techniques the key is the salt."""
    if not altering and not salt.startswith(_MARK):
        return salt
    return _MARK + json.dumps([salt, *altering], ensure_ascii=False)


def altered(key: str, by: str) -> str:
    """The key of state that has a `key`, and that something else has altered too."""
    held = json.loads(key[len(_MARK) :]) if key.startswith(_MARK) else [key]
    return state_key(held[0], [*held[1:], by])


def salt_of(key: str) -> str:
    """The tenant's salt in a key."""
    if not key.startswith(_MARK):
        return key
    salt: str = json.loads(key[len(_MARK) :])[0]
    return salt
