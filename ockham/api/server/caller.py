"""Who sent a request, and so what it may see, touch and wait for.

Where the server has several API keys, each key is a tenant: it shares neither state nor turns with
the others. With one key or none there is nobody to keep apart by key; then `cache_salt`, and for
turns the label `user`, tell tenants apart as whoever sends the requests wishes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

_SCOPE = "ockham.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` stands for the key where keys are tenants, and is "" elsewhere. `owners` is how many
    tenants share what may be pinned."""

    name: str = ""
    is_admin: bool = False
    owners: int = 1
    in_batch: bool = False
    """Whether a batch asks, which takes turns of its own beside what its owner asks himself."""

    def salt(self, cache_salt: str | None) -> str:
        """What the caller's state is kept under: nobody with another key can name it."""
        return f"{self.name}/{cache_salt or ''}" if self.name else cache_salt or ""

    def tenant(self, cache_salt: str | None, label: str | None) -> str:
        """Whose turn the caller's requests take: the key's, else the salt's, else the label's.

        Under a key a label would not do: who makes up labels would get more turns."""
        if self.in_batch:
            return _digest("batch", self.name)
        if self.name:
            return _digest("key", self.name)
        if cache_salt:
            return _digest("salt", cache_salt)
        return _digest("label", label) if label else ""


NOBODY = Caller()
"""Who asks where no key is wanted."""


def caller_of(http: Request) -> Caller:
    found: Caller = http.scope.get(_SCOPE, NOBODY)
    return found


def set_caller(scope: Scope, caller: Caller) -> None:
    scope[_SCOPE] = caller


def key_name(key: str) -> str:
    """A name for a key's tenant, from which the key cannot be had back. It is the same after a
    restart, so that the tenant finds its state on disk again."""
    return _digest("api key", key)


def _digest(kind: str, text: str) -> str:
    found = hashlib.blake2b(digest_size=16, person=b"ockham tenant")
    found.update(f"{kind}\n{text}".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
