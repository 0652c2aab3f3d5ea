"""Chosen heads see the first blocks of keys and the latest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.attention.blocks import at_least
from ockham.core.arrays import Ints
from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern
from ockham.core.visits import EVERY, BlockVisits

Heads = str | float | list[tuple[int, int]]
"""Which key-value heads stream: "all", a share of them all, or each as [layer, head]; in a text, as
settings have it, "0.5" or "3/1+4/0"."""
Place = tuple[int, int]
"""A layer, and one of its key-value heads."""


class StreamingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`heads` that stream see the first `sink_blocks` blocks of 64 keys, and the latest
    `window_blocks`, their own included. What a request leaves out of its ask is taken from here."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"heads": (0.25, 0.5)}

    heads: Heads = 0.5
    sink_blocks: int = 1
    window_blocks: int = 4

    def __post_init__(self) -> None:
        try:
            _check(self.sink_blocks, self.window_blocks, self.heads)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class StreamingAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    heads: Heads | None = None
    sink_blocks: int | None = None
    window_blocks: int | None = None

    def __post_init__(self) -> None:
        try:
            _check(self.sink_blocks, self.window_blocks, self.heads)
        except ValueError as error:
            raise InvalidRequest(str(error), "streaming") from None


@register("pattern", "streaming", exact=False, books=("streaming",), paper="352")
class Streaming:
    """Chosen key-value heads look at the first blocks of keys and at the latest ones, all others at
    every block.

    Many heads look at little else than the beginning of a text and its latest part, and long texts
    cost those heads as much as the others (DuoAttention, Xiao et al. 2024, arXiv:2410.10819, and
    the static half of LServe, Yang et al. 2025, arXiv:2502.14866). All keys are kept. What a row
    sees follows from its place in the text alone, so that requests which ask the same share state.
    A share of heads is spread evenly over the layers; a list names heads that are known to look at
    nothing else. Measured by `ockham techniques measure streaming`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes", "attention")
    name: ClassVar[str] = "streaming"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = StreamingOptions
    Ask: ClassVar[type[Ask]] = StreamingAsk
    trial: ClassVar[dict[str, object]] = {"heads": "all", "sink_blocks": 0, "window_blocks": 1}
    """An ask that leaves keys out of texts of a few dozen tokens."""

    def __init__(self, options: StreamingOptions | None = None) -> None:
        self.options = options or StreamingOptions()

    def open(self, ask: StreamingAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        options = self.options
        heads = options.heads if ask.heads is None else ask.heads
        sinks = options.sink_blocks if ask.sink_blocks is None else ask.sink_blocks
        window = options.window_blocks if ask.window_blocks is None else ask.window_blocks
        chosen = _places(heads, groups)
        of_groups = [
            np.array(
                [
                    [0 if (layer, head) in chosen else EVERY for head in range(group.kv_heads)]
                    for layer in group.layers
                ],
                np.int32,
            )
            for group in groups
        ]
        return StreamingHeads(sinks, window, tuple(of_groups))


@dataclass(frozen=True, slots=True, eq=False)
class StreamingHeads(SequencePattern):
    """The heads of a sequence that stream: of each group (layers, kv_heads), 0 for them and `EVERY`
    for the others."""

    sinks: int
    window: int
    of_groups: tuple[Ints, ...]

    def visits(self, group: int, block: int) -> BlockVisits | None:
        of = self.of_groups[group]
        if block < self.sinks + self.window or not len(of) or of.max() == EVERY:
            return None
        latest = np.arange(block - self.window + 1, block + 1, dtype=np.int32)
        return BlockVisits((np.concatenate([np.arange(self.sinks, dtype=np.int32), latest]),), of)


def _check(sinks: int | None, window: int | None, heads: Heads | None) -> None:
    """Raise ValueError, with a sentence, for what makes sense on no model."""
    at_least(0, sink_blocks=sinks)
    at_least(1, window_blocks=window)
    if heads is not None:
        _read(heads)


def _read(heads: Heads) -> float | list[Place]:
    """A share of all heads, or each by its place. Raises ValueError with a sentence."""
    wrong = ValueError(
        'heads must be "all", a share above 0 and up to 1, or a list of [layer, head] (in a '
        f"setting 3/1+4/0), got {shown(heads)}."
    )
    if heads == "all":
        return 1.0
    if isinstance(heads, str):
        try:
            if "/" not in heads:
                heads = float(heads)
            else:
                pairs = [each.split("/") for each in heads.split("+")]
                heads = [(int(layer), int(head)) for layer, head in pairs]
        except ValueError:
            raise wrong from None
    if isinstance(heads, list):
        if not heads or min(map(min, heads)) < 0:
            raise wrong
    elif not 0.0 < heads <= 1.0:
        raise wrong
    return heads


def _places(heads: Heads, groups: Sequence[AttentionGroup]) -> set[Place]:
    """The heads that stream. Raises InvalidRequest for one that the model does not have."""
    kv_heads: dict[int, int] = {}
    for group in groups:  # of which several may hold a layer
        for layer in group.layers:
            kv_heads[layer] = max(group.kv_heads, kv_heads.get(layer, 0))
    every = [(layer, head) for layer in sorted(kv_heads) for head in range(kv_heads[layer])]
    chosen = _read(heads)
    if isinstance(chosen, float):
        count = max(1, round(chosen * len(every)))
        return {
            place
            for i, place in enumerate(every)
            if (i + 1) * count // len(every) > i * count // len(every)
        }
    for layer, head in chosen:
        if (layer, head) not in every:
            raise InvalidRequest(
                f"heads names head {head} of layer {layer}; this model has layers 0 to "
                f"{max(kv_heads)} with {max(kv_heads.values())} key-value heads each, from 0 on.",
                "streaming",
            )
    return set(chosen)
