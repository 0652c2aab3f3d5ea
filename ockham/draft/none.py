"""Draft nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream


@register("drafter", "none", exact=True)
class NoDrafter(Drafter, DraftStream):
    """One token a step and sequence.

    The counterfactual that every drafter is measured against.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "none"
    kinds: ClassVar[tuple[float, ...]] = ()

    def open(self, salt: str) -> NoDrafter:
        return self

    def extend(self, tokens: Ints) -> None:
        pass

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        return None
