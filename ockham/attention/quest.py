"""Read the blocks of keys whose bounds promise the query most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.attention.choosing import (
    ChoosingAsk,
    ChoosingOptions,
    ChoosingPattern,
    numbers_of,
)
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern


class QuestOptions(ChoosingOptions, frozen=True, forbid_unknown_fields=True):
    """See `attention.choosing`."""


class QuestAsk(ChoosingAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    name: ClassVar[str] = "quest"


@register("pattern", "quest", exact=False, books=("quest",), paper="352")
class Quest:
    """Each query reads the blocks of keys that promise it most, by bounds on their keys.

    Beside every 16 keys of a head stand the largest and the smallest value of each element. From
    these a query gets an upper bound of its scores with the 16, for a sixteenth of the bytes that
    keys and values have. The blocks of 64 with the highest bounds are read, the others not; none is
    dropped, so that the next token may read others (Quest, Tang et al. 2024, arXiv:2406.10774; with
    blocks of 64 and one set of blocks for the query heads of a group as in LServe, paper 352).
    Prompts are read whole, so that their state is shared with everybody. Measured by
    `ockham techniques measure quest`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes",)
    name: ClassVar[str] = "quest"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[QuestOptions]] = QuestOptions
    Ask: ClassVar[type[QuestAsk]] = QuestAsk
    trial: ClassVar[dict[str, object]] = {"tokens": 0, "share": 0.1, "sinks": 0, "local": 1}
    """An ask that leaves keys out of texts of a few dozen tokens more than a block."""

    def __init__(self, options: QuestOptions | None = None) -> None:
        self.options = options or QuestOptions()

    def alters_prompts(self, ask: QuestAsk) -> bool:
        """See `Pattern`."""
        return numbers_of(self.options, ask).first is not None

    def open(self, ask: QuestAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """See `Pattern`."""
        return ChoosingPattern.of("bounds", numbers_of(self.options, ask), groups)
