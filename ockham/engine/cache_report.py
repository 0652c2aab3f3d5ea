"""What a cache holds, for people to look at, and what of it was pinned for them."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ockham.cache.state import State
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.seams import EXPECTED, GONE, PLAIN, SPENT, Ints, NodeFacts, Reuse
from ockham.engine.messages import CachedNode, CacheQuery, CacheReport, PinnedPrefix

PINNED_SHARE = 0.5
"""Of the pool's pages at most so many may be pinned: the rest is for requests to run in."""
SHOWN_TOKENS = 24
"""Tokens of a node whose text is shown."""
_HINTS = {GONE: "gone", SPENT: "discard", PLAIN: "", EXPECTED: "keep"}


@dataclass(frozen=True, slots=True)
class _Pin:
    tokens: Ints
    salt: str


class CacheKeeper:
    """Pins prefixes, and tells what is held. `decode` is None where there is no tokenizer."""

    def __init__(
        self, reuse: Reuse, state: State, decode: Callable[[list[int]], str] | None
    ) -> None:
        self._reuse, self._state, self._decode = reuse, state, decode
        self._pins: dict[str, _Pin] = {}
        self._key = secrets.token_bytes(16)

    def pin(self, name: str, tokens: list[int], salt: str) -> None:
        """Keep the state of a prefix that was just computed until it is unpinned.

        Raises InvalidRequest if the name is taken, too much would be pinned, or it is not held."""
        if name in self._pins:
            raise InvalidRequest(
                f"there is a pin {shown(name)} already; choose another name.", "name"
            )
        most = int(PINNED_SHARE * min(group.pages for group in self._state.groups))
        pages = sum(map(self._pages, (len(p.tokens) for p in self._pins.values())))
        more = self._pages(len(tokens))
        if pages + more > most:
            raise InvalidRequest(
                f"the prefix takes {more} pages and {pages} are pinned; at most {most} may be. "
                "Unpin another, or raise kv_cache_memory_bytes.",
                "prompt",
            )
        prefix = np.array(tokens, np.int32)
        if self._reuse.pin(prefix, salt, True) < len(tokens):
            self._reuse.pin(prefix, salt, False)
            self._pin_all()
            raise InvalidRequest(
                "the prefix is not held, so it cannot be pinned: prefix caching is off, or its "
                "pages were needed. Try again.",
                "prompt",
            )
        self._pins[name] = _Pin(prefix, salt)

    @property
    def pins(self) -> dict[str, int]:
        """The pinned prefixes by name, and how many tokens each has."""
        return {name: len(pin.tokens) for name, pin in self._pins.items()}

    def unpin(self, name: str) -> None:
        """Raises InvalidRequest if there is no such pin."""
        pin = self._pins.pop(name, None)
        if pin is None:
            known = ", ".join(map(repr, self._pins)) or "none"
            raise InvalidRequest(f"there is no pin {shown(name)}; there are {known}.", "name")
        self._reuse.pin(pin.tokens, pin.salt, False)
        self._pin_all()

    def _pin_all(self) -> None:
        """Pins may share their beginnings, from which one was just taken away."""
        for pin in self._pins.values():
            self._reuse.pin(pin.tokens, pin.salt, True)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._state.page_tokens) + 1

    def answer(self, query: CacheQuery) -> CacheReport:
        """Do what a query asks, and report. What is wrong with it stands in the report."""
        error = None
        try:
            if query.pin is not None:
                self.pin(query.pin.name, query.pin.prompt_token_ids, query.pin.cache_salt)
            if query.unpin is not None:
                self.unpin(query.unpin)
        except InvalidRequest as refused:
            error = str(refused)
        return self.report(query, error)

    def report(self, query: CacheQuery, error: str | None = None) -> CacheReport:
        """The nodes with the most pages, at most `query.most_nodes`, and sums over all."""
        facts = self._reuse.facts()
        groups = self._state.groups
        page_bytes = sum(group.page_bytes for group in groups) // len(groups)
        chosen = sorted(facts, key=lambda node: -node.pages)[: query.most_nodes]
        chosen.sort(key=_place)
        now_s = time.monotonic()
        return CacheReport(
            ask_id=query.ask_id,
            error=error,
            nodes=[self._node(node, page_bytes, now_s, query) for node in chosen],
            nodes_total=len(facts),
            tokens_total=sum(node.tokens for node in facts),
            bytes_total=sum(node.pages for node in facts) * page_bytes,
            pool_bytes=sum(group.pages * group.page_bytes for group in groups),
            pins=[
                PinnedPrefix(name, len(pin.tokens), self.tenant(pin.salt))
                for name, pin in self._pins.items()
            ],
        )

    def _node(
        self, node: NodeFacts, page_bytes: int, now_s: float, query: CacheQuery
    ) -> CachedNode:
        text = None
        allowed = query.unsalted_text if not node.salt else node.salt == query.salt
        if allowed and self._decode is not None:
            text = self._decode(self._reuse.tokens_of(node.number, SHOWN_TOKENS).tolist())
        return CachedNode(
            number=node.number,
            parent=node.parent,
            tenant=self.tenant(node.salt),
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
