"""Chosen heads keep the first cells and the latest ones, all others keep every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.cache.keep.learned import HeadKind, Heads, checked
from ockham.core import asks
from ockham.core.arrays import Bools, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import Keeping, KeptText
from ockham.core.visits import BLOCK_KEYS
from ockham.model.checkpoint.keep_files import read_alphas

TOKENS = 1 << 30
"""No text is longer."""
LEAST: dict[str, float] = {"share": 0.0, "window": 1, "sinks": 0, "block": 16}
MOST: dict[str, float] = {"share": 1.0, "window": TOKENS, "sinks": TOKENS, "block": TOKENS}


class DuoOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The `share` of all key-value heads that need a whole text least hold its first `sinks` cells
    and its latest `window`. Cells are dropped whenever another `block` tokens are computed. `heads`
    is a directory that `ockham train keep` wrote; None for those that come with the built-in
    models."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.25, 0.5)}

    heads: str | None = None
    share: float = 0.5
    window: int = 256
    sinks: int = 16
    block: int = 256

    def __post_init__(self) -> None:
        try:
            checked(self, LEAST, MOST)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class DuoAsk(asks.Ask, kw_only=True, frozen=True):
    """The same, of one request; None for what the engine's setting says."""

    share: float | None = None
    window: int | None = None
    sinks: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        try:
            checked(self, LEAST, MOST)
        except ValueError as error:
            raise InvalidRequest(str(error), "duo") from None


@register("keep", "duo", exact=False, books=("duo",), paper="arXiv:2410.10819")
class Duo:
    """Some heads look far back, and hold a text's whole state. The others look at its beginning and
    its latest tokens, and hold no more than those (DuoAttention, Xiao et al. 2024).

    Which heads are which is learned once for a model. They are ranked, and the `share` that needs a
    whole text least *streams*: in models whose query heads share keys nearly all heads need it to
    some degree. What a row sees follows from its place alone. The numbers of cells that two heads
    hold differ by whole blocks of 64: up to 63 cells more than `window` stay. Layers all of whose
    heads stream hold less memory where the engine's setting names the rule; in other layers all
    heads take the memory of those that keep everything, and the streaming ones save the time of
    reading. Approximate. Measured by `ockham techniques measure duo`; trained by
    `ockham train keep`.
    """

    name: ClassVar[str] = "duo"
    shares: ClassVar[bool] = True
    heads_kind: ClassVar[HeadKind] = "alpha"
    trial: ClassVar[dict[str, object]] = {"share": 0.8, "window": 8, "sinks": 2, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[DuoOptions]] = DuoOptions
    Ask: ClassVar[type[DuoAsk]] = DuoAsk

    def __init__(self, options: DuoOptions) -> None:
        self._options = options
        self._heads = Heads("duo", options.heads, read_alphas)

    def open(self, ask: DuoAsk, text: KeptText) -> Keeping | None:
        """See `Keep`."""
        options, heads = self._options, self._heads.of(text)
        whole = [layer for group in text.groups if group.window is None for layer in group.layers]
        streams = heads.lowest(options.share if ask.share is None else ask.share, whole)
        if not streams.any():
            return None
        return StreamingCells(
            self.name,
            [group.layers for group in text.groups],
            [
                None if group.window is not None else streams[list(group.layers)]
                for group in text.groups
            ],
            options.sinks if ask.sinks is None else ask.sinks,
            options.window if ask.window is None else ask.window,
            options.block if ask.block is None else ask.block,
        )


class StreamingCells(Keeping):
    """Of each group of `layers`, `streams` (layers, kv_heads) says which heads hold the first
    `sinks` cells and the latest `window`; None of a group with a window."""

    def __init__(
        self,
        name: str,
        layers: Sequence[Sequence[int]],
        streams: Sequence[Bools | None],
        sinks: int,
        window: int,
        block: int,
    ) -> None:
        self.name = name
        self._layers, self._streams = layers, streams
        self._sinks, self._window, self._block = sinks, window, block

    def border(self, tokens: int) -> int:
        """The next multiple of the block at which there is a block of 64 to drop."""
        least = max(tokens + 1, self._sinks + self._window + BLOCK_KEYS)
        return -(-least // self._block) * self._block

    def most_cells(self, tokens: int) -> int:
        """Those of the group that holds most."""
        return max(self.most_cells_of(group, tokens) for group in range(len(self._streams)))

    def most_cells_of(self, group: int, tokens: int) -> int:
        """All, unless every head of the group streams."""
        streams = self._streams[group]
        if streams is None:
            return 0
        if not streams.all():
            return tokens
        return min(tokens, self._sinks + self._window + BLOCK_KEYS - 1 + self._block)

    def apart(self, group: int) -> tuple[int, ...]:
        """The layers all of whose heads stream."""
        streams = self._streams[group]
        if streams is None or streams.all():
            return ()
        return tuple(self._layers[group][i] for i in np.flatnonzero(streams.all(axis=1)).tolist())

    def keep(self, group: int, places: Ints) -> Ints | None:
        """Of heads that stream, all but the whole blocks of 64 between their first cells and their
        latest ones."""
        streams = self._streams[group]
        if streams is None or not streams.any():
            return None
        if streams.all():
            # No head has gaps, and all hold the same.
            return self._held(places.reshape(-1, places.shape[-1])[0])
        own = np.broadcast_to(places, (*streams.shape, places.shape[-1]))[streams][0]
        held, count = self._held(own), places.shape[-1]
        cells = np.empty((*streams.shape, count), np.int32)
        cells[...] = np.arange(count, dtype=np.int32)
        cells[streams] = -1
        cells[streams, count - len(held) :] = held
        return cells

    def _held(self, places: Ints) -> Ints:
        """Which cells of a head that streams stay; -1 is a gap."""
        tokens = int(places[-1]) + 1
        between = (tokens - self._sinks - self._window) // BLOCK_KEYS * BLOCK_KEYS
        stays = (places < self._sinks) | (places >= self._sinks + between)
        return np.flatnonzero(stays & (places >= 0)).astype(np.int32)
