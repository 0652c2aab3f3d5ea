"""Keep every cell that some later row can see."""

from __future__ import annotations

from typing import ClassVar

from ockham.core import asks
from ockham.core.registry import register
from ockham.core.seams import KeptText


@register("keep", "all", exact=True)
class KeepAll:
    """Layers with full attention keep everything, layers with a sliding window their window.

    What lies before a window can never be seen again, so letting it go changes no output.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "all"
    Ask: ClassVar[type[asks.Ask]] = asks.Ask

    def open(self, ask: asks.Ask, text: KeptText) -> None:
        """All cells stay."""
