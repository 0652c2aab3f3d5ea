"""Keep the latest cells, and those whose learned score reaches a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.cache.keep.gaps import with_gaps
from ockham.cache.keep.learned import HeadKind, Heads, ScoredCells, checked
from ockham.core import asks
from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Keeping, KeptText
from ockham.core.visits import BLOCK_KEYS
from ockham.model.checkpoint.keep_files import KeepHeads, read_heads

TOKENS = 1 << 30
"""No text is longer."""
LEAST: dict[str, float] = {"share": 0.0, "threshold": -1e6, "window": 1, "sinks": 0, "block": 16}
MOST: dict[str, float] = {
    "share": 1.0,
    "threshold": 1e6,
    "window": TOKENS,
    "sinks": TOKENS,
    "block": TOKENS,
}


class KVzapOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Cells stay whose score reaches that of a `share` of the text that the heads were measured on,
    or a `threshold`; the latest `window` and the first `sinks` stay in any case. Cells are dropped
    whenever another `block` tokens are computed. `heads` is a directory that `ockham train keep`
    wrote; None for those that come with the built-in models."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.5, 0.75)}

    heads: str | None = None
    share: float = 0.5
    threshold: float | None = None
    window: int = 128
    sinks: int = 4
    block: int = 256

    def __post_init__(self) -> None:
        try:
            checked(self, LEAST, MOST)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class KVzapAsk(asks.Ask, kw_only=True, frozen=True):
    """The same, of one request; None for what the engine's setting says. A `share` that is asked
    goes before a threshold of the setting."""

    share: float | None = None
    threshold: float | None = None
    window: int | None = None
    sinks: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        try:
            checked(self, LEAST, MOST)
        except ValueError as error:
            raise InvalidRequest(str(error), "kvzap") from None


@register("keep", "kvzap", exact=False, books=("kvzap",), paper="arXiv:2601.07891")
class KVzap:
    """Each layer scores a token once for each key-value head, from its hidden state, by a linear
    head that was trained to foretell how much later rows look at it (KVzap, Jegou et al. 2026).

    Cells stay whose score reaches a threshold, so that heads and texts which need more keep more.
    What stays depends on no question that comes later. The numbers of cells that two heads keep
    differ by whole blocks of 64: up to 63 cells below the threshold stay with each. All heads take
    the memory of the one that keeps most; the others save the time of reading. Approximate.
    Measured by `ockham techniques measure kvzap`; trained by `ockham train keep`.
    """

    name: ClassVar[str] = "kvzap"
    heads_kind: ClassVar[HeadKind] = "linear"
    trial: ClassVar[dict[str, object]] = {"share": 0.1, "window": 8, "sinks": 2, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[KVzapOptions]] = KVzapOptions
    Ask: ClassVar[type[KVzapAsk]] = KVzapAsk

    def __init__(self, options: KVzapOptions) -> None:
        self._options = options
        self._heads = Heads("kvzap", options.heads, read_heads)

    def open(self, ask: KVzapAsk, text: KeptText) -> Keeping:
        """See `Keep`."""
        options, heads = self._options, self._heads.of(text)
        threshold = ask.threshold
        if threshold is None and ask.share is None:
            threshold = options.threshold
        if threshold is None:
            threshold = heads.threshold(options.share if ask.share is None else ask.share)
        bounds = (
            options.window if ask.window is None else ask.window,
            options.sinks if ask.sinks is None else ask.sinks,
            options.block if ask.block is None else ask.block,
        )
        return AboveThreshold(self.name, text, heads, threshold, *bounds)


class AboveThreshold(ScoredCells):
    """The first `sinks`, the latest `window`, and what reaches the threshold."""

    def __init__(
        self,
        name: str,
        text: KeptText,
        heads: KeepHeads,
        threshold: float,
        window: int,
        sinks: int,
        block: int,
    ) -> None:
        super().__init__(name, heads, text.groups)
        self._threshold, self._window, self._sinks, self._block = threshold, window, sinks, block

    def border(self, tokens: int) -> int:
        """The next multiple of the block at which there is a block to drop."""
        least = max(tokens + 1, self._sinks + self._window + BLOCK_KEYS)
        return -(-least // self._block) * self._block

    def most_cells(self, tokens: int) -> int:
        """All, if they reach the threshold."""
        return tokens

    def keep(self, group: int, places: Ints) -> Ints | None:
        """All but whole blocks of what lies below the threshold, the least first."""
        wide = self.wide(group, places)
        scores = self.scores(group, wide)
        first = int(wide.max()) + 1 - self._window
        low = (scores < self._threshold) & (wide >= self._sinks) & (wide < first)
        counts = low.sum(axis=-1) // BLOCK_KEYS * BLOCK_KEYS
        if not counts.any():
            return None
        least_first = np.argsort(np.where(low, scores, np.inf), axis=-1, kind="stable")
        kept = []
        for index, of_layer in enumerate(counts.tolist()):
            own = []
            for head, count in enumerate(of_layer):
                stays = wide[index, head] >= 0
                stays[least_first[index, head, :count]] = False
                own.append(np.flatnonzero(stays).astype(np.int32))
            kept.append(own)
        return with_gaps(kept)
