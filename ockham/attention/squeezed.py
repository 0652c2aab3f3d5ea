"""Part the keys of a fixed context into neighbourhoods, once, and read those near the query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask, merged
from ockham.core.choices import Choice
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import AttentionGroup, SequencePattern
from ockham.core.visits import BLOCK_KEYS, BlockVisits


class SqueezedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first `context` tokens of a prompt, down to whole blocks of 64, are the fixed context; 0
    for none. Of its blocks a generated token reads the first `sinks`, which keep their order, and a
    `share` of the others, but for those whose best neighbourhood scores more than `within` below
    the best of all, before the softmax. With `prompts`, the rest of the prompt chooses as well. The
    first `dense_layers` layers read everything. What a request leaves out of its ask is taken from
    here."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.25, 0.5)}

    context: int = 0
    share: float = 0.25
    within: float = math.inf
    sinks: int = 1
    dense_layers: int = 2
    prompts: bool = False

    def __post_init__(self) -> None:
        if wrong := _wrong(self):
            raise ConfigError(wrong)


class SqueezedAsk(Ask, kw_only=True, frozen=True):
    """The same, of one request."""

    name: ClassVar[str] = "squeezed"
    context: int | None = None
    share: float | None = None
    within: float | None = None
    sinks: int | None = None
    dense_layers: int | None = None
    prompts: bool | None = None

    def __post_init__(self) -> None:
        if wrong := _wrong(self):
            raise InvalidRequest(wrong, self.name)


def _wrong(numbers: SqueezedOptions | SqueezedAsk) -> str:
    """A sentence on what makes sense on no model; empty if all does."""
    for field in ("context", "sinks", "dense_layers"):
        value = getattr(numbers, field)
        if value is not None and not 0 <= value < 1 << 31:
            return f"{field} must lie in [0, 2^31), got {value}."
    if numbers.share is not None and not 0.0 <= numbers.share <= 1.0:
        return f"share must lie in [0, 1], got {numbers.share}."
    if numbers.within is not None and not numbers.within >= 0.0:
        return f"within must be a number from 0 on, got {numbers.within}."
    return ""


@dataclass(frozen=True, slots=True)
class SqueezedPattern(SequencePattern):
    """How the rows of one sequence choose in each group of layers, and what is reordered."""

    choices: tuple[Choice | None, ...]
    cells: range | None

    @property
    def reorders(self) -> range | None:
        """See `SequencePattern`."""
        return self.cells

    def for_prompt(self, tokens: int) -> SequencePattern:
        """See `SequencePattern`: a prompt that ends in the context is read whole."""
        if self.cells is None or tokens > self.cells.stop:
            return self
        return replace(self, choices=(None,) * len(self.choices), cells=None)

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`: nothing is left out before the queries are known."""
        return None

    def choice(self, group: int) -> Choice | None:
        """See `SequencePattern`."""
        return self.choices[group]


@register("pattern", "squeezed", exact=False, books=("squeezed",), paper="72")
class Squeezed:
    """Questions about a fixed context read the parts of it whose keys are like the question.

    Once the context is computed, its keys are parted into neighbourhoods of 16 that point the same
    way, for each layer and key-value head, by balanced 2-means of the normalised keys; a block of
    64 is four neighbours. The mean of each neighbourhood stands beside it, a thirty-second of the
    bytes of keys and values, and generated tokens read the blocks whose means promise most, and
    everything after the context (Squeezed Attention, Hooper et al. 2024, arXiv:2411.09688; there
    clusters have any size, and keys keep their places). The reordered context is kept beside the
    prefix, and all who ask about it share it. Measured by `ockham techniques measure squeezed`.
    """

    saves: ClassVar[tuple[str, ...]] = ("state bytes",)
    name: ClassVar[str] = "squeezed"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[SqueezedOptions]] = SqueezedOptions
    Ask: ClassVar[type[SqueezedAsk]] = SqueezedAsk
    trial: ClassVar[dict[str, object]] = {"context": BLOCK_KEYS, "share": 0.0, "sinks": 0}
    """An ask that leaves keys out of texts of a few tokens more than a block."""

    def __init__(self, options: SqueezedOptions | None = None) -> None:
        self.options = options or SqueezedOptions()

    def alters_prompts(self, ask: SqueezedAsk) -> bool:
        """See `Pattern`: the context is anybody's, and nobody goes on from what comes after it."""
        return False

    def open(self, ask: SqueezedAsk, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """See `Pattern`."""
        numbers = merged(self.options, ask)
        blocks = numbers.context // BLOCK_KEYS
        # The row's own block counts as well, and is read in any case.
        read = 1 + numbers.sinks + math.ceil(numbers.share * max(0, blocks - numbers.sinks))
        choices: list[Choice | None] = []
        for group in groups:
            layers = tuple(layer >= numbers.dense_layers for layer in group.layers)
            choice = Choice(
                "means",
                layers,
                first=blocks * BLOCK_KEYS if numbers.prompts else None,
                tokens=read * BLOCK_KEYS,
                sinks=numbers.sinks,
                local=1,
                within=numbers.within,
                among=blocks * BLOCK_KEYS,
            )
            choices.append(choice if group.window is None and any(layers) else None)
        if blocks <= numbers.sinks or not any(choices):
            return None
        cells = range(numbers.sinks * BLOCK_KEYS, blocks * BLOCK_KEYS)
        return SqueezedPattern(tuple(choices), cells)
