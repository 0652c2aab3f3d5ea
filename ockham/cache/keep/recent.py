"""Keep the first few cells and the latest ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core import asks
from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Keeping, KeptText

LEAST = {"window": 1, "sinks": 0, "block": 16}
MOST = 1 << 30
"""No text is longer."""


class RecentOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The latest `window` cells stay, and the first `sinks`. Cells are dropped whenever another
    `block` tokens are computed, so that up to `block` more are held in between. From there on a
    prompt is computed in chunks of at most `block` rows."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"window": (256, 512, 1024)}

    window: int = 1024
    sinks: int = 4
    block: int = 128

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not least <= value <= MOST:
                raise ConfigError(f"{name} must be from {least} to {MOST}, got {value}.")


class RecentAsk(asks.Ask, kw_only=True, frozen=True):
    """Which cells stay, as in the engine's setting; None for what that says."""

    window: int | None = None
    sinks: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= MOST:
                raise InvalidRequest(f"{name} must be from {least} to {MOST}, got {value}.", name)


@register("keep", "recent", exact=False, books=("recent",), paper="arXiv:2309.17453")
class Recent:
    """The first few tokens and a window of the latest stay (StreamingLLM, Xiao et al. 2023).

    Much of what attention gives out goes to a text's first tokens, whatever they are: they are
    *sinks*. With those and the latest tokens a model goes on reading and writing fluently, and the
    state of a text of any length has a fixed size. What stood between is forgotten. Approximate.
    Other than in the paper, keys keep their positions, so that a text ends where the model's
    positions do, and state that others computed is of use up to the first cell that was dropped.
    """

    name: ClassVar[str] = "recent"
    shares: ClassVar[bool] = True
    trial: ClassVar[dict[str, object]] = {"window": 8, "sinks": 2, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[RecentOptions]] = RecentOptions
    Ask: ClassVar[type[RecentAsk]] = RecentAsk

    def __init__(self, options: RecentOptions) -> None:
        self._options = options

    def open(self, ask: RecentAsk, text: KeptText) -> LatestCells:
        """See `Keep`."""
        options = self._options
        window = options.window if ask.window is None else ask.window
        sinks = options.sinks if ask.sinks is None else ask.sinks
        block = options.block if ask.block is None else ask.block
        return LatestCells(self.name, window, sinks, block)


class LatestCells(Keeping):
    """The first `sinks` and the latest `window` cells stay, whenever a multiple of `block` tokens
    is computed."""

    def __init__(self, name: str, window: int, sinks: int, block: int) -> None:
        self.name = name
        self._window, self._sinks, self._block = window, sinks, block

    def border(self, tokens: int) -> int:
        """The next multiple of the block at which there is something to drop."""
        least = max(tokens, self._sinks + self._window) + 1
        return -(-least // self._block) * self._block

    def most_cells(self, tokens: int) -> int:
        return min(tokens, self._sinks + self._window + self._block)

    def keep(self, group: int, places: Ints) -> Ints:
        first = int(places[-1]) + 1 - self._window
        return np.flatnonzero((places < self._sinks) | (places >= first)).astype(np.int32)
