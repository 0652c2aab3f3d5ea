"""Reuse nothing between requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import NOTHING_KEPT, CachedPrefix, Ints, PagePool


@register("reuse", "none", exact=True)
class NoReuse:
    """No state outlives its request; every prompt is computed in full.

    The counterfactual that every other reuse is measured against.
    """

    name: ClassVar[str] = "none"

    def attach(self, pool: PagePool, slope: float) -> None:
        self._groups = len(pool.windows)

    def lookup(self, tokens: Ints, salt: str) -> CachedPrefix | None:
        return None

    def should_wait(self, tokens: Ints, salt: str, others: Iterable[tuple[Ints, str]]) -> bool:
        return False

    def keep(self, handle: int, tokens: Ints, salt: str, tables: Sequence[Ints]) -> int:
        return NOTHING_KEPT

    def share(self, handle: int) -> int:
        return NOTHING_KEPT

    def leave(self, handle: int) -> None:
        return None

    def evictable(self) -> list[int]:
        return [0] * self._groups

    def forget(self) -> None:
        return None

    def held(self) -> list[Ints]:
        return []
