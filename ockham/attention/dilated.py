"""Queries see so many blocks of keys before their own, in some layers with gaps between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.attention.blocks import BlocksByPlace, at_least
from ockham.core.arrays import Ints
from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern


class DilatedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query sees `window_blocks` blocks of 64 keys, its own included: neighbouring ones in even
    layers, and each `dilation`-th in odd ones. What a request leaves out of its ask is taken from
    here."""

    window_blocks: int = 8
    dilation: int = 4

    def __post_init__(self) -> None:
        try:
            at_least(1, window_blocks=self.window_blocks, dilation=self.dilation)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class DilatedAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    window_blocks: int | None = None
    dilation: int | None = None

    def __post_init__(self) -> None:
        try:
            at_least(1, window_blocks=self.window_blocks, dilation=self.dilation)
        except ValueError as error:
            raise InvalidRequest(str(error), "dilated") from None


@register("pattern", "dilated", exact=False, books=("dilated",), paper="337")
class Dilated:
    """Every head looks at a fixed number of blocks of keys: the latest ones in even layers, and
    ones with gaps between them in odd layers.

    Neighbourhood attention (Hassani et al. 2023, arXiv:2204.07143, and its fused kernels,
    arXiv:2403.04690) in one dimension and causal, with local and dilated layers in turn. The cost
    of a token does not grow with the text. Blocks, and not keys, stand apart, because keys that are
    read together must stand together. What is seen of the first tokens goes through many layers, so
    that models which were not trained with it lose them. Measured by `ockham techniques measure
    dilated`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes", "attention")
    name: ClassVar[str] = "dilated"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = DilatedOptions
    Ask: ClassVar[type[Ask]] = DilatedAsk
    trial: ClassVar[dict[str, object]] = {"window_blocks": 1}
    """An ask that leaves keys out of texts of a few dozen tokens."""

    def __init__(self, options: DilatedOptions | None = None) -> None:
        self.options = options or DilatedOptions()

    def open(self, ask: DilatedAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        options = self.options
        window = options.window_blocks if ask.window_blocks is None else ask.window_blocks
        dilation = options.dilation if ask.dilation is None else ask.dilation

        def blocks(dilated: int, block: int) -> Ints:
            step = dilation if dilated else 1
            first = max(block % step, block - (window - 1) * step)
            return np.arange(first, block + 1, step, dtype=np.int32)

        kinds = [np.array(group.layers, np.int32) % 2 for group in groups]
        return BlocksByPlace(
            tuple(
                np.repeat(kind[:, None], group.kv_heads, axis=1)
                for kind, group in zip(kinds, groups, strict=True)
            ),
            blocks,
        )
