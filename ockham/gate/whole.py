"""No gate: every row runs the whole model."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.asks import Ask
from ockham.core.registry import register
from ockham.core.seams import GatedModel


class WholeAsk(Ask, kw_only=True, frozen=True):
    """The request's rows run the whole model, whatever the engine's setting is."""


@register("gate", "whole", exact=True)
class Whole:
    """Every row runs every layer."""

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "whole"
    Ask: ClassVar[type[WholeAsk]] = WholeAsk

    def open(self, ask: WholeAsk, model: GatedModel) -> None:
        """See `Gate`."""
        return
