"""Reuse the state of every prefix that was computed before and is still held."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from ockham.cache.native_tree import Tree, make_tree
from ockham.cache.store.fetch import NOTHING
from ockham.core.arrays import Ints, common_prefix
from ockham.core.registry import register
from ockham.core.seams import NOTHING_KEPT, CachedPrefix, Fetch, NodeFacts, PagePool, Tiers


@register("reuse", "prefix", exact=True, books=("prefix", "store", "swap", "texts"))
class PrefixReuse:
    """A prompt goes on from the longest prefix that any request before it has left behind.

    A radix tree over token ids (RadixAttention: Zheng et al., SGLang, arXiv:2312.07104), shared at
    every token: a page of which a prompt needs only the first cells is copied when it is written
    to. Pages stay until the pool needs them; the leaf that is worth least goes first, to memory and
    disk where there are such tiers, from which a waiting prompt gets it back. Where some layers
    keep no keys and values, their checkpoints go by themselves when their room is wanted.
    Of prompts that arrive together with a prefix in common, one computes it and the others wait.
    Of a text of which a vector or a score was made, that is kept too, and given to who asks again.
    """

    name: ClassVar[str] = "prefix"

    def attach(self, pool: PagePool, slope: float, tiers: Tiers | None = None) -> None:
        self._pool, self._tiers = pool, tiers
        self.tree: Tree = make_tree(pool.page_tokens, pool.windows, slope, pool.apart)
        pool.reclaim = self._reclaim

    def lookup(self, tokens: Ints, salt: str) -> CachedPrefix | None:
        self.tree.tick(time.monotonic())
        found = self.tree.match(salt, tokens)
        if not found.tokens:
            return None
        node, taken = self.tree.cut(found.node, found.tokens)
        self._pool.hold(taken)
        self.tree.lock(node)
        return CachedPrefix(found.tokens, found.tables, node)

    def should_wait(
        self, tokens: Ints, salt: str, others: Iterable[tuple[Ints, str]], least: int
    ) -> int:
        shared = max(
            (common_prefix(tokens, t) for t, their_salt in others if their_salt == salt), default=0
        )
        if shared < least:
            return 0
        return shared if shared >= self.held_tokens(tokens, salt) + least else 0

    def fetch(self, tokens: Ints, salt: str) -> Fetch | None:
        if self._tiers is None:
            return NOTHING
        return self._tiers.fetch(self.tree, tokens, salt)

    def advance(self, beside_steps: bool) -> None:
        if self._tiers is not None:
            self._tiers.advance(self.tree, beside_steps)

    def wait(self, timeout_s: float) -> None:
        if self._tiers is not None:
            self._tiers.wait(timeout_s)

    def keep(self, handle: int, tokens: Ints, salt: str, tables: Sequence[Ints]) -> int:
        self.tree.tick(time.monotonic())
        node, taken = self.tree.insert(salt, tokens, tables)
        self._pool.hold(taken)
        if self._tiers is not None:
            self._tiers.kept(tokens, salt, tables, taken)
        if node == handle:
            return handle
        self.tree.lock(node)
        self.leave(handle)
        return node

    def share(self, handle: int) -> int:
        if handle != NOTHING_KEPT:
            self.tree.lock(handle)
        return handle

    def leave(self, handle: int) -> None:
        if handle != NOTHING_KEPT:
            self.tree.unlock(handle)

    def hint(self, tokens: Ints, salt: str, hint: int, start: int) -> None:
        found = self.tree.match(salt, tokens, touch=False)
        if found.tokens > start:
            node, taken = self.tree.cut(found.node, found.tokens)
            self._pool.hold(taken)
            self._pool.hold(self.tree.hint(node, hint, start))

    def held_tokens(self, tokens: Ints, salt: str) -> int:
        return self.tree.match(salt, tokens, touch=False).tokens

    def agreed_tokens(self, tokens: Ints, salt: str) -> int:
        return self.tree.agreed(salt, tokens)[0]

    def pin(self, tokens: Ints, salt: str, pinned: bool) -> int:
        found = self.tree.match(salt, tokens, touch=False)
        if found.tokens:
            node, taken = self.tree.cut(found.node, found.tokens)
            self._pool.hold(taken)
            self.tree.pin(node, pinned)
        return found.tokens

    def facts(self) -> list[NodeFacts]:
        return self.tree.dump()

    def tokens_of(self, number: int, most: int) -> Ints:
        return self.tree.tokens_of(number, most)

    def evictable(self) -> list[int]:
        return self.tree.evictable()

    def forget(self) -> None:
        while (pages := self.tree.evict()) is not None:
            if self._tiers is not None:
                self._tiers.letting_go(pages)
            self._pool.drop(pages)
        if self._tiers is not None:
            self._tiers.forget()

    def held(self) -> list[Ints]:
        held = [self.tree.held(group) for group in range(len(self._pool.windows))]
        if self._tiers is None:
            return held
        return [np.concatenate(both) for both in zip(held, self._tiers.held(), strict=True)]

    def _reclaim(self, need: list[int]) -> None:
        while short := [
            group
            for group, (have, wanted) in enumerate(zip(self._pool.free_pages(), need, strict=True))
            if have < wanted
        ]:
            pages = None
            if set(short) <= set(self._pool.apart):
                pages = self.tree.release(short)
            if pages is None:
                pages = self.tree.evict()
            if pages is None:
                return
            if self._tiers is not None:
                self._tiers.letting_go(pages)
            self._pool.drop(pages)
