"""Blocks of a prompt's rows visit the blocks of keys whose antidiagonals score most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from ockham.attention.blocks import at_least
from ockham.attention.prompts import BlocksOfPrompt
from ockham.core.asks import Ask, merged
from ockham.core.choices import STRIDES, TOGETHER, Choice
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern


class XAttentionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """While a prompt is read, its blocks of 64 rows visit the blocks of keys that make up
    `threshold` of the estimated attention, but no larger a `share` of all that they see: the first
    `sink_blocks`, their own, and the heaviest. `stride` is how many queries, and keys, the estimate
    takes together: 8 or 16, which costs half as much. The first `dense_layers` layers, and the
    prompt's `last_tokens`, see all. What a request leaves out of its ask is taken from here."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"threshold": (0.9, 0.95)}

    threshold: float = 0.9
    share: float = 1.0
    stride: int = 16
    sink_blocks: int = 1
    dense_layers: int = 0
    last_tokens: int = 128

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class XAttentionAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    threshold: float | None = None
    share: float | None = None
    stride: int | None = None
    sink_blocks: int | None = None
    dense_layers: int | None = None
    last_tokens: int | None = None

    def __post_init__(self) -> None:
        try:
            _check(self)
        except ValueError as error:
            raise InvalidRequest(str(error), "xattention") from None


@register("pattern", "xattention", exact=False, books=("xattention",))
class XAttention:
    """While a prompt is read, each block of rows visits the blocks of keys that it looks at most.

    The sum of the scores on an antidiagonal of `stride` queries and keys, which passes through each
    of them, is one product of `1 / stride` of the cost. The softmax of these sums says how much of
    the attention of 64 rows is on each block of 64 keys, and as many are visited as make up the
    threshold (XAttention, Xu et al. 2025, arXiv:2503.16428; here for the query heads of a key-value
    head together). All keys are kept, and what is generated reads them all.

    The 64 rows are computed in one step, so that what they visit follows from the text up to the
    last of them: requests that ask the same share it. Where the last tokens of a prompt begin
    depends on its length; the state from there on is nobody else's. Measured by
    `ockham techniques measure xattention`.
    """

    saves: ClassVar[tuple[str, ...]] = ("attention",)
    name: ClassVar[str] = "xattention"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = XAttentionOptions
    Ask: ClassVar[type[Ask]] = XAttentionAsk
    trial: ClassVar[dict[str, object]] = {
        "threshold": 0.0,
        "sink_blocks": 0,
        "last_tokens": 1,
    }
    """An ask that leaves keys out of prompts of more than two blocks."""

    def __init__(self, options: XAttentionOptions | None = None) -> None:
        self.options = options or XAttentionOptions()

    def open(self, ask: XAttentionAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """See `Pattern`."""
        numbers = merged(self.options, ask)
        found: list[Choice | None] = []
        for group in groups:
            layers = tuple(layer >= numbers.dense_layers for layer in group.layers)
            choice = Choice(
                TOGETHER,
                layers,
                first=0,
                share=numbers.share,
                sinks=numbers.sink_blocks,
                local=1,
                stride=numbers.stride,
                threshold=numbers.threshold,
            )
            found.append(choice if group.window is None and any(layers) else None)
        return BlocksOfPrompt(tuple(found), numbers.last_tokens) if any(found) else None


def _check(numbers: XAttentionOptions | XAttentionAsk) -> None:
    for field in ("threshold", "share"):
        value = getattr(numbers, field)
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"{field} must lie in [0, 1], got {value}.")
    if numbers.stride is not None and numbers.stride not in STRIDES:
        raise ValueError(f"stride must be 8 or 16, got {numbers.stride}.")
    at_least(0, sink_blocks=numbers.sink_blocks, dense_layers=numbers.dense_layers)
    at_least(1, last_tokens=numbers.last_tokens)
