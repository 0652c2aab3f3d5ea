"""csrc/state/prefix_tree.h in the shape of `ockham.cache.prefix_tree.PrefixTree`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ockham.cache.prefix_tree import Match, PrefixTree
from ockham.core.arrays import Ints
from ockham.core.seams import NodeFacts
from ockham.kernels.native import core


class NativeTree:
    """See `PrefixTree`, whose every decision it makes too."""

    def __init__(
        self,
        page_tokens: int,
        windows: Sequence[int],
        slope: float = 0.0,
        apart: Sequence[int] = (),
    ) -> None:
        self._page_tokens = page_tokens
        self._native = core.PrefixTree(page_tokens, list(windows), slope, list(apart))

    def match(self, salt: str, tokens: Ints, touch: bool = True) -> Match:
        return Match(*self._native.match(salt, tokens, touch))

    def agreed(self, salt: str, tokens: Ints) -> tuple[int, list[Ints]]:
        return cast("tuple[int, list[Ints]]", self._native.agreed(salt, tokens))

    def insert(self, salt: str, tokens: Ints, tables: Sequence[Ints]) -> tuple[int, list[Ints]]:
        found: tuple[int, list[Ints]] = self._native.insert(salt, tokens, tables, self._page_tokens)
        return found

    def cut(self, number: int, cells: int) -> tuple[int, list[Ints]]:
        return cast("tuple[int, list[Ints]]", self._native.cut(number, cells))

    def lock(self, number: int) -> None:
        self._native.lock(number)

    def unlock(self, number: int) -> None:
        self._native.unlock(number)

    def evict(self) -> list[Ints] | None:
        return cast("list[Ints] | None", self._native.evict())

    def release(self, groups: Sequence[int]) -> list[Ints] | None:
        return cast("list[Ints] | None", self._native.release(list(groups)))

    def evictable(self) -> list[int]:
        return cast("list[int]", self._native.evictable())

    def held(self, group: int) -> Ints:
        return cast("Ints", self._native.held(group))

    def pin(self, number: int, pinned: bool = True) -> None:
        self._native.pin(number, pinned)

    def hint(self, number: int, hint: int, start: int) -> list[Ints]:
        return cast("list[Ints]", self._native.hint(number, hint, start))

    def tick(self, now_s: float) -> None:
        self._native.tick(now_s)

    def tokens_of(self, number: int, most: int) -> Ints:
        return cast("Ints", self._native.tokens_of(number, most))

    def dump(self) -> list[NodeFacts]:
        return [NodeFacts(*facts) for facts in self._native.dump()]

    @property
    def tokens(self) -> int:
        return self._native.tokens

    @property
    def pages(self) -> int:
        return self._native.pages

    @property
    def nodes(self) -> int:
        return self._native.nodes

    @property
    def bytes(self) -> int:
        """What the tree itself takes, beside the state that it points to."""
        return self._native.bytes


Tree = NativeTree | PrefixTree


def make_tree(
    page_tokens: int, windows: Sequence[int], slope: float = 0.0, apart: Sequence[int] = ()
) -> Tree:
    """The native tree where the core was built, the plain one elsewhere."""
    kind = PrefixTree if core is None else NativeTree
    return kind(page_tokens, windows, slope, apart)
