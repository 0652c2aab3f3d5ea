"""Deep layers read a prompt by its first and its latest blocks of keys, but for its last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import msgspec
import numpy as np

from ockham.attention.blocks import at_least
from ockham.core.arrays import Ints
from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern
from ockham.core.visits import BLOCK_KEYS, EVERY, BlockVisits

DENSE_SHARE = 0.5


class TriangleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first layers, a share `dense_share` of them, see all. In the others the rows of a prompt
    see the first `sink_blocks` blocks of 64 keys and the latest `window_blocks`, their own
    included; its last `last_tokens` rows see all. What a request leaves out of its ask is taken
    from here."""

    dense_share: float | None = None
    """None: DENSE_SHARE."""
    sink_blocks: int = 2
    window_blocks: int = 8
    last_tokens: int = 128
    dense_layers: float | None = None
    """The older name of `dense_share`."""

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class TriangleAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    dense_share: float | None = None
    sink_blocks: int | None = None
    window_blocks: int | None = None
    last_tokens: int | None = None
    dense_layers: float | None = None
    """The older name of `dense_share`."""

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as error:
            raise InvalidRequest(str(error), "triangle") from None


@register("pattern", "triangle", exact=False, books=("triangle",))
class Triangle:
    """Deep layers look at the first and the latest blocks of keys while they read a prompt, and at
    all of them for its last tokens and for what follows.

    In deep layers the middle of the attention's triangle matters to few rows but the last ones of a
    prompt, which are what is asked; shallow layers stay whole (TriangleMix, He et al. 2025,
    arXiv:2507.21526). It needs no training, nothing is estimated, and all keys are kept: what is
    generated reads them all. Where the last rows begin depends on the prompt's length. State before
    them follows from the place alone, and is shared; that of the last rows and behind is nobody
    else's. Measured by `ockham techniques measure triangle`.
    """

    saves: ClassVar[tuple[str, ...]] = ("attention",)
    name: ClassVar[str] = "triangle"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = TriangleOptions
    Ask: ClassVar[type[Ask]] = TriangleAsk
    trial: ClassVar[dict[str, object]] = {
        "dense_share": 0.0,
        "sink_blocks": 0,
        "window_blocks": 1,
        "last_tokens": 1,
    }
    """An ask that leaves keys out of prompts of more than two blocks."""

    def __init__(self, options: TriangleOptions | None = None) -> None:
        self.options = options or TriangleOptions()

    def open(self, ask: TriangleAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        options = self.options
        given = (
            *(ask.dense_share, ask.dense_layers),
            *(options.dense_share, options.dense_layers),
            DENSE_SHARE,
        )
        share = next(each for each in given if each is not None)
        sinks = options.sink_blocks if ask.sink_blocks is None else ask.sink_blocks
        window = options.window_blocks if ask.window_blocks is None else ask.window_blocks
        last = options.last_tokens if ask.last_tokens is None else ask.last_tokens
        layers = sorted(layer for group in groups for layer in group.layers)
        dense = set(layers[: round(share * len(layers))])
        if len(dense) == len(layers):
            return None
        of_groups = [
            np.repeat(
                np.array([[EVERY if layer in dense else 0] for layer in group.layers], np.int32),
                group.kv_heads,
                axis=1,
            )
            for group in groups
        ]
        return TriangleOfPrompt(sinks, window, last, tuple(of_groups))


@dataclass(frozen=True, slots=True, eq=False)
class TriangleOfPrompt(SequencePattern):
    """The rows of one sequence, whose query blocks from `dense_from` on see all. Of each group
    (layers, kv_heads), `of_groups` has 0 for heads of deep layers and `EVERY` for the others."""

    sinks: int
    window: int
    last: int
    of_groups: tuple[Ints, ...]
    dense_from: int = 0

    @property
    def exact_until(self) -> int | None:
        """See `SequencePattern`."""
        return self.dense_from * BLOCK_KEYS

    def for_prompt(self, tokens: int) -> SequencePattern:
        """See `SequencePattern`."""
        return replace(self, dense_from=max(0, tokens - self.last) // BLOCK_KEYS)

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`."""
        of = self.of_groups[group]
        if block >= self.dense_from or block < self.sinks + self.window:
            return None
        if not len(of) or of.max() == of.min() == EVERY:
            return None
        latest = np.arange(block - self.window + 1, block + 1, dtype=np.int32)
        return BlockVisits((np.concatenate([np.arange(self.sinks, dtype=np.int32), latest]),), of)


def _check(numbers: TriangleOptions | TriangleAsk) -> None:
    shares = {"dense_share": numbers.dense_share, "dense_layers": numbers.dense_layers}
    if None not in shares.values():
        raise ValueError("dense_layers is the older name of dense_share; give one of them.")
    for name, share in shares.items():
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} is a share of the layers, from 0 to 1, got {share}.")
    at_least(0, sink_blocks=numbers.sink_blocks)
    at_least(1, window_blocks=numbers.window_blocks, last_tokens=numbers.last_tokens)
