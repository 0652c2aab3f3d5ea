"""Scan all keys in 2 bits, and read the blocks near the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.attention.choosing import (
    ChoosingAsk,
    ChoosingOptions,
    ChoosingPattern,
    numbers_of,
)
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern


class ScanOptions(ChoosingOptions, frozen=True, forbid_unknown_fields=True):
    """See `attention.choosing`; of the blocks that `tokens` and `share` allow, those are left out
    whose best key scores more than `within` below the best key of all, before the softmax."""

    within: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.within >= 0.0:
            raise ConfigError(_WRONG.format(self.within))


class ScanAsk(ChoosingAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    name: ClassVar[str] = "scan"
    within: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within is not None and not self.within >= 0.0:
            raise InvalidRequest(_WRONG.format(self.within), self.name)


_WRONG = "within must be a number from 0 on, got {}."


@register("pattern", "scan", exact=False, books=("scan",))
class Scan:
    """Each query scans all keys in 2 bits an element, and reads the blocks near the best of them.

    Beside the keys stands a copy of 2 bits an element, turned by a Hadamard matrix so that no
    element stands out. A query estimates its score with every key from that, for a thirteenth of
    the bytes that keys and values have. Blocks of 64 whose best key comes near the best of all are
    read whole, the others not; none is dropped (the scan of FFD, "Faster than Flash", ICML 2026,
    which stores the other bits of the same keys apart). Prompts are read whole, so that their state
    is shared with everybody. Measured by `ockham techniques measure scan`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes",)
    name: ClassVar[str] = "scan"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[ScanOptions]] = ScanOptions
    Ask: ClassVar[type[ScanAsk]] = ScanAsk
    trial: ClassVar[dict[str, object]] = {"tokens": 0, "share": 0.1, "sinks": 0, "local": 1}
    """An ask that leaves keys out of texts of a few dozen tokens more than a block."""

    def __init__(self, options: ScanOptions | None = None) -> None:
        self.options = options or ScanOptions()

    def alters_prompts(self, ask: ScanAsk) -> bool:
        """See `Pattern`."""
        return numbers_of(self.options, ask).first is not None

    def open(self, ask: ScanAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """See `Pattern`."""
        within = self.options.within if ask.within is None else ask.within
        return ChoosingPattern.of("codes", numbers_of(self.options, ask), groups, within)
