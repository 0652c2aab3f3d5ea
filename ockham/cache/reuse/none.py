"""Reuse nothing between requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import CachedPrefix


@register("reuse", "none", exact=True)
class NoReuse:
    """No state outlives its request; every prompt is computed in full.

    The counterfactual that every other reuse is measured against.
    """

    name: ClassVar[str] = "none"

    def lookup(self, tokens: Sequence[int], salt: str | None) -> CachedPrefix | None:
        return None

    def evict(self, pages: int) -> bool:
        return False
