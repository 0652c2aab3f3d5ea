"""What a cache holds, for people to look at, and what of it was pinned for them."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ockham.cache.state import State
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.seams import EXPECTED, GONE, PLAIN, SPENT, Ints, NodeFacts, Reuse
from ockham.core.state_key import salt_of
from ockham.engine.messages import (
    CachedNode,
    CacheQuery,
    CacheReport,
    Pin,
    PinnedPrefix,
    Unpin,
)

PINNED_SHARE = 0.5
"""Of the pool's pages at most so many may be pinned: the rest is for requests to run in."""
SHOWN_TOKENS = 24
"""Tokens of a node whose text is shown."""
_HINTS = {GONE: "gone", SPENT: "discard", PLAIN: "", EXPECTED: "keep"}


@dataclass(frozen=True, slots=True)
class _Pin:
    tokens: Ints
    owner: str
    asked: Pin


class CacheKeeper:
    """Pins prefixes, and tells what is held. `decode` is None where there is no tokenizer; `key`
    gives the key of the state of a request under a salt that asks for nothing.

    Pins under different salts know nothing of each other: each salt has names of its own.
    """

    def __init__(
        self,
        reuse: Reuse,
        state: State,
        decode: Callable[[list[int]], str] | None,
        key: Callable[[str], str],
    ) -> None:
        self._reuse, self._state, self._decode = reuse, state, decode
        self._key_of = key
        self._pins: dict[tuple[str, str], _Pin] = {}
        """By salt and name."""
        self._key = secrets.token_bytes(16)
        self.changed: Callable[[], None] = lambda: None
        """Called when pins have come or gone."""

    def check(self, pin: Pin) -> None:
        """Raises InvalidRequest if the name is taken, or its owner would pin too much."""
        if (pin.cache_salt, pin.name) in self._pins:
            raise InvalidRequest(
                f"there is a pin {shown(pin.name)} already; choose another name.", "name"
            )
        smallest = min(group.pages for group in self._state.groups)
        most = int(PINNED_SHARE * smallest) // pin.owners
        own = [len(p.tokens) for p in self._pins.values() if p.owner == pin.owner]
        pages, more = sum(map(self._pages, own)), self._pages(len(pin.prompt_token_ids))
        if pages + more > most:
            raise InvalidRequest(
                f"the prefix takes {more} pages, and your other pins {pages}; at most {most} may "
                "be pinned. Unpin another, or start the server with more --kv-cache-memory-bytes.",
                "prompt",
            )

    def pin(self, pin: Pin) -> None:
        """Keep the state of a prefix that was just computed until it is unpinned.

        Raises InvalidRequest as `check` does, or if it is not held."""
        self.check(pin)
        prefix = np.array(pin.prompt_token_ids, np.int32)
        key = self._key_of(pin.cache_salt)
        if self._reuse.pin(prefix, key, True) < len(prefix):
            self._reuse.pin(prefix, key, False)
            self._pin_all()
            raise InvalidRequest(
                "the prefix is not held, so it cannot be pinned: prefix caching is off, or its "
                "pages were needed. Try again.",
                "prompt",
            )
        self._pins[pin.cache_salt, pin.name] = _Pin(prefix, pin.owner, pin)
        self.changed()

    def pins(self, salt: str = "") -> dict[str, int]:
        """The prefixes pinned under a salt by name, and how many tokens each has."""
        return {name: len(pin.tokens) for (of, name), pin in self._pins.items() if of == salt}

    def unpin(self, unpin: Unpin) -> None:
        """Raises InvalidRequest if there is no such pin, in the same words whoever has one."""
        found = [
            (salt, name)
            for salt, name in self._pins
            if name == unpin.name
            and unpin.cache_salt in (None, salt)
            and unpin.tenant in (None, self.tenant(salt))
        ]
        if not found:
            raise InvalidRequest(f"there is no pin {shown(unpin.name)}.", "name")
        if len(found) > 1:
            raise InvalidRequest(
                f"several tenants have a pin {shown(unpin.name)}; send the tenant too, as "
                "/v1/cache shows it.",
                "tenant",
            )
        pin = self._pins.pop(found[0])
        self._reuse.pin(pin.tokens, self._key_of(found[0][0]), False)
        self._pin_all()
        self.changed()

    def lasting(self) -> list[Pin]:
        """The pins that are to outlive the engine."""
        return [pin.asked for pin in self._pins.values() if pin.asked.lasting]

    def _pin_all(self) -> None:
        """Pins may share their beginnings, from which one was just taken away."""
        for (salt, _), pin in self._pins.items():
            self._reuse.pin(pin.tokens, self._key_of(salt), True)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._state.page_tokens) + 1

    def answer(self, query: CacheQuery) -> CacheReport:
        """Do what a query asks, and report. What is wrong with it stands in the report."""
        error = None
        try:
            if query.pin is not None and query.only_check:
                self.check(query.pin)
            elif query.pin is not None:
                self.pin(query.pin)
            if query.unpin is not None:
                self.unpin(query.unpin)
        except InvalidRequest as refused:
            error = refused
        return self.report(query, error)

    def report(self, query: CacheQuery, error: InvalidRequest | None = None) -> CacheReport:
        """The nodes with the most pages of those that the query may see, at most
        `query.most_nodes`, and sums over all of those."""
        facts = [node for node in self._reuse.facts() if query.salt in (None, salt_of(node.salt))]
        groups = self._state.groups
        page_bytes = sum(group.page_bytes for group in groups) // len(groups)
        chosen = sorted(facts, key=lambda node: -node.pages)[: query.most_nodes]
        chosen.sort(key=_place)
        # The tree's own numbers count what everybody has stored.
        numbers = {node.number: i for i, node in enumerate(sorted(facts, key=_place))}
        now_s = time.monotonic()
        return CacheReport(
            ask_id=query.ask_id,
            error=None if error is None else str(error),
            param=None if error is None else error.param,
            nodes=[self._node(node, numbers, page_bytes, now_s, query.texts) for node in chosen],
            nodes_total=len(facts),
            tokens_total=sum(node.tokens for node in facts),
            bytes_total=sum(node.pages for node in facts) * page_bytes,
            pool_bytes=sum(group.pages * group.page_bytes for group in groups),
            pins=[
                PinnedPrefix(name, len(pin.tokens), self.tenant(salt))
                for (salt, name), pin in self._pins.items()
                if query.salt in (None, salt)
            ],
        )

    def _node(
        self,
        node: NodeFacts,
        numbers: Mapping[int, int],
        page_bytes: int,
        now_s: float,
        shows_text: bool,
    ) -> CachedNode:
        text = None
        if shows_text and self._decode is not None:
            text = self._decode(self._reuse.tokens_of(node.number, SHOWN_TOKENS).tolist())
        return CachedNode(
            number=numbers[node.number],
            parent=numbers.get(node.parent, -1),
            tenant=self.tenant(salt_of(node.salt)),
            start=node.start,
            tokens=node.tokens,
            bytes=node.pages * page_bytes,
            hits=node.hits,
            readers=node.locks,
            pinned=node.pinned,
            hint=_HINTS[node.hint],
            age_s=now_s - node.made_s,
            idle_s=now_s - node.used_s,
            text=text,
        )

    def tenant(self, salt: str) -> str:
        """A name for a salt that tells nothing of it, and is another after each start."""
        if not salt:
            return ""
        return hashlib.blake2b(salt.encode(), key=self._key, digest_size=4).hexdigest()


def _place(node: NodeFacts) -> tuple[str, int, int]:
    return node.salt, node.start, node.number
