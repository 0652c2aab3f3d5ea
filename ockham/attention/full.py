"""Visit every block of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.asks import Ask as PlainAsk
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern


@register("pattern", "full", exact=True)
class Full:
    """Every query visits every key that its layer lets it see.

    A request asks for it where the engine's setting names another pattern.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "full"
    Ask: ClassVar[type[PlainAsk]] = PlainAsk

    def open(self, ask: PlainAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        return None
