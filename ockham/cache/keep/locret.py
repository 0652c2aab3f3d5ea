"""Keep the latest cells, and so many of the highest learned score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.cache.keep.learned import HeadKind, Heads, ScoredCells, checked
from ockham.core import asks
from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Keeping, KeptText
from ockham.model.checkpoint.keep_files import KeepHeads, read_heads

TOKENS = 1 << 30
"""No text is longer."""
LEAST: dict[str, float] = {"budget": 2, "window": 1, "sinks": 0, "block": 16}
MOST: dict[str, float] = dict.fromkeys(LEAST, TOKENS)


class LocretOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Each head of each layer holds `budget` cells after each `block` tokens: the first `sinks`,
    the latest `window`, and those of the highest score. `heads` is a directory that `ockham train
    keep` wrote; None for those that come with the built-in models."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"budget": (512, 1024)}

    heads: str | None = None
    budget: int = 1024
    window: int = 256
    sinks: int = 4
    block: int = 256

    def __post_init__(self) -> None:
        try:
            checked(self, LEAST, MOST)
            check_room(self.budget, self.window, self.sinks)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class LocretAsk(asks.Ask, kw_only=True, frozen=True):
    """The same, of one request; None for what the engine's setting says."""

    budget: int | None = None
    window: int | None = None
    sinks: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        try:
            checked(self, LEAST, MOST)
        except ValueError as error:
            raise InvalidRequest(str(error), "locret") from None


def check_room(budget: int, window: int, sinks: int) -> None:
    """Raise ValueError where what stays in any case leaves no room for a choice."""
    if budget <= window + sinks:
        raise ValueError(
            f"a budget of {budget} cells leaves none to choose beside the latest {window} and the "
            f"first {sinks}; raise it, or lower window or sinks."
        )


@register("keep", "locret", exact=False, books=("locret",), paper="332")
class Locret:
    """Each layer scores a token once for each key-value head, and after each chunk of a text the
    best of them stay (Locret, Huang et al. 2024, arXiv:2410.01805).

    The state of a text of any length has a fixed size, also while a prompt is read: budget + block
    cells. The latest tokens stay until others are the latest, as the paper's stabilisers do. What
    stays depends on no question that comes later. Approximate. Other than in the paper the heads
    read the layer's input, of which queries, keys and values are linear maps, and chunks end at
    fixed places, so that they do not depend on the batch. Measured by `ockham techniques measure
    locret`; trained by `ockham train keep --rule locret`.
    """

    name: ClassVar[str] = "locret"
    heads_kind: ClassVar[HeadKind] = "inner"
    trial: ClassVar[dict[str, object]] = {"budget": 24, "window": 8, "sinks": 2, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[LocretOptions]] = LocretOptions
    Ask: ClassVar[type[LocretAsk]] = LocretAsk

    def __init__(self, options: LocretOptions) -> None:
        self._options = options
        self._heads = Heads("locret", options.heads, read_heads)

    def open(self, ask: LocretAsk, text: KeptText) -> Keeping:
        """See `Keep`."""
        options = self._options
        budget = options.budget if ask.budget is None else ask.budget
        window = options.window if ask.window is None else ask.window
        sinks = options.sinks if ask.sinks is None else ask.sinks
        block = options.block if ask.block is None else ask.block
        try:
            check_room(budget, window, sinks)
        except ValueError as error:
            raise InvalidRequest(str(error), "locret") from None
        return BestCells(self.name, text, self._heads.of(text), budget, window, sinks, block)


class BestCells(ScoredCells):
    """The first `sinks`, the latest `window`, and the best of the others: `budget` in all."""

    def __init__(
        self,
        name: str,
        text: KeptText,
        heads: KeepHeads,
        budget: int,
        window: int,
        sinks: int,
        block: int,
    ) -> None:
        super().__init__(name, heads, text.groups)
        self._budget, self._window, self._sinks, self._block = budget, window, sinks, block

    def border(self, tokens: int) -> int:
        """The next multiple of the block at which there is something to drop."""
        least = max(tokens, self._budget) + 1
        return -(-least // self._block) * self._block

    def most_cells(self, tokens: int) -> int:
        return min(tokens, self._budget + self._block)

    def keep(self, group: int, places: Ints) -> Ints:
        """The best of each head, in the order of the text."""
        wide = self.wide(group, places)
        first = int(wide.max()) + 1 - self._window
        always = (wide < self._sinks) | (wide >= first)
        scores = np.where(always, np.inf, self.scores(group, wide))
        best = np.argsort(-scores, axis=-1, kind="stable")[..., : self._budget]
        return np.sort(best, axis=-1).astype(np.int32)
