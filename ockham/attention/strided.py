"""Each head sees the latest blocks of keys, and every so many-th block before them."""

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
from ockham.core.visits import EVERY


class StridedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A head sees the latest `local_blocks` blocks of 64 keys, its own included, and of those
    before every `stride`-th. Every `dense_every`-th layer, the first one included, sees all; 0:
    none does. What a request leaves out of its ask is taken from here."""

    local_blocks: int = 4
    stride: int = 4
    dense_every: int = 2

    def __post_init__(self) -> None:
        try:
            _check(self.local_blocks, self.stride, self.dense_every)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class StridedAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    local_blocks: int | None = None
    stride: int | None = None
    dense_every: int | None = None

    def __post_init__(self) -> None:
        try:
            _check(self.local_blocks, self.stride, self.dense_every)
        except ValueError as error:
            raise InvalidRequest(str(error), "strided") from None


@register("pattern", "strided", exact=False, books=("strided",), paper="178")
class Strided:
    """Each head looks at the latest blocks of keys and at every so many-th block before them, which
    are other ones for each head.

    Together, heads one after the other see all blocks (S2-Attention, Lin et al. 2024,
    arXiv:2407.17678), so that nothing is out of reach of a model that was trained to spread its
    attention so; every second layer sees all, as in Phi-3-small. Models that were not trained with
    it lose what their heads look for elsewhere. The shards are counted on over the key-value heads
    of all layers, because few models have as many heads as a stride has shards. Measured by
    `ockham techniques measure strided`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes", "attention")
    name: ClassVar[str] = "strided"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = StridedOptions
    Ask: ClassVar[type[Ask]] = StridedAsk
    trial: ClassVar[dict[str, object]] = {"local_blocks": 1, "stride": 1000, "dense_every": 0}
    """An ask that leaves keys out of texts of a few dozen tokens."""

    def __init__(self, options: StridedOptions | None = None) -> None:
        self.options = options or StridedOptions()

    def open(self, ask: StridedAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        options = self.options
        local = options.local_blocks if ask.local_blocks is None else ask.local_blocks
        stride = options.stride if ask.stride is None else ask.stride
        dense = options.dense_every if ask.dense_every is None else ask.dense_every
        shards: dict[tuple[int, int], Ints] = {}  # by layer and group
        heads = 0
        for layer, number in sorted((n, i) for i, g in enumerate(groups) for n in g.layers):
            kv_heads = groups[number].kv_heads
            if dense and layer % dense == 0:
                own = np.full(kv_heads, EVERY, np.int32)
            else:
                own = (np.arange(heads, heads + kv_heads) % stride).astype(np.int32)
                heads += kv_heads
            shards[layer, number] = own

        def blocks(shard: int, block: int) -> Ints:
            latest = max(0, block - local + 1)
            return np.concatenate(
                [np.arange(shard, latest, stride), np.arange(latest, block + 1)], dtype=np.int32
            )

        return BlocksByPlace(
            tuple(
                np.stack([shards[layer, number] for layer in group.layers])
                for number, group in enumerate(groups)
            ),
            blocks,
        )


def _check(local: int | None, stride: int | None, dense: int | None) -> None:
    at_least(1, local_blocks=local, stride=stride)
    at_least(0, dense_every=dense)
