"""Draft nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.registry import register
from ockham.core.seams import Draft


@register("drafter", "none", exact=True)
class NoDrafter:
    """One token a step and sequence.

    The counterfactual that every drafter is measured against.
    """

    name: ClassVar[str] = "none"

    def propose(self, tokens: Sequence[int], most: int) -> Draft | None:
        return None
