"""Reuse nothing between requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from ockham.cache.store.fetch import NOTHING
from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import NOTHING_KEPT, CachedPrefix, Fetch, NodeFacts, PagePool, Tiers


@register("reuse", "none", exact=True)
class NoReuse:
    """No state outlives its request; every prompt is computed in full.

    The counterfactual that every other reuse is measured against.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "none"

    def attach(self, pool: PagePool, slope: float, tiers: Tiers | None = None) -> None:
        if tiers is not None:
            raise ConfigError(
                "kv_store and swap_space keep what the reuse 'prefix' finds again; leave them out, "
                "or do not turn prefix caching off."
            )
        self._groups = len(pool.windows)

    def fetch(self, tokens: Ints, salt: str) -> Fetch | None:
        return NOTHING

    def advance(self, beside_steps: bool) -> None:
        return None

    def wait(self, timeout_s: float) -> None:
        return None

    def lookup(self, tokens: Ints, salt: str) -> CachedPrefix | None:
        return None

    def should_wait(
        self, tokens: Ints, salt: str, others: Iterable[tuple[Ints, str]], least: int
    ) -> int:
        return 0

    def keep(self, handle: int, tokens: Ints, salt: str, tables: Sequence[Ints]) -> int:
        return NOTHING_KEPT

    def share(self, handle: int) -> int:
        return NOTHING_KEPT

    def leave(self, handle: int) -> None:
        return None

    def hint(self, tokens: Ints, salt: str, hint: int, start: int) -> None:
        return None

    def held_tokens(self, tokens: Ints, salt: str) -> int:
        return 0

    def agreed_tokens(self, tokens: Ints, salt: str) -> int:
        return 0

    def pin(self, tokens: Ints, salt: str, pinned: bool) -> int:
        return 0

    def facts(self) -> list[NodeFacts]:
        return []

    def tokens_of(self, number: int, most: int) -> Ints:
        raise KeyError(number)

    def evictable(self) -> list[int]:
        return [0] * self._groups

    def forget(self) -> None:
        return None

    def held(self) -> list[Ints]:
        return []
