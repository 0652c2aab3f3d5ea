"""Leave named layers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask
from ockham.core.cost import ATTENTION, FEED_FORWARD, Skips
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import GatedModel, SequenceGate

MIDDLE = "middle"
PARTS = {
    "layer": (ATTENTION, FEED_FORWARD),
    "attention": (ATTENTION,),
    "feed_forward": (FEED_FORWARD,),
}
"""What of a layer may be left out."""


class SkipLayersOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`layers` are the numbers of layers, counted from 0 and joined by + ("5+7"), or "middle" for
    the one in the middle of the model. `part` is what of them is left out: layer (all of it),
    attention or feed_forward."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "part": ("layer", "attention", "feed_forward")
    }

    layers: str = MIDDLE
    part: str = "layer"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(f"part must be one of {', '.join(PARTS)}, got {self.part!r}.")
        numbers = self.layers.split("+")
        if self.layers != MIDDLE and not all(n.isascii() and n.isdigit() for n in numbers):
            raise ConfigError(
                f"layers are numbers joined by +, as in 5+7, or {MIDDLE}; got {self.layers!r}."
            )


class SkipLayersAsk(Ask, kw_only=True, frozen=True):
    """`layers` are the numbers of the layers that are left out, counted from 0, and `part` is what
    of them: layer, attention or feed_forward. Where the ask says neither, the engine's options
    do."""

    layers: list[int] | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise InvalidRequest(
                "layers is empty; name a layer, or leave skip_layers out.", "skip_layers"
            )
        if self.part is not None and self.part not in PARTS:
            raise InvalidRequest(
                f"part must be one of {', '.join(PARTS)}, got {shown(self.part)}.", "skip_layers"
            )


class Skipping(SequenceGate):
    """The same sublayers for every row."""

    def __init__(self, skips: Skips) -> None:
        self.skips = skips


@register("gate", "skip_layers", exact=False, books=("skip_layers",))
class SkipLayers:
    """Named layers do not run for the rows of requests that ask for it.

    Neighbouring layers of a deep model compute similar things, so that a few of the middle ones can
    be left out at some cost in quality (ShortGPT, Men et al. 2024, arXiv:2403.03853; attention
    alone: He et al. 2024, arXiv:2406.15786). Their products, their attention and their keys and
    values are saved. Approximate; `ockham techniques measure skip_layers` says what each layer is
    worth.
    """

    name: ClassVar[str] = "skip_layers"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[SkipLayersOptions]] = SkipLayersOptions
    Ask: ClassVar[type[SkipLayersAsk]] = SkipLayersAsk

    def __init__(self, options: SkipLayersOptions) -> None:
        self._options = options

    def open(self, ask: SkipLayersAsk, model: GatedModel) -> Skipping:
        """See `Gate`."""
        if ask.layers is not None:
            layers = ask.layers
        elif self._options.layers == MIDDLE:
            layers = [model.layers // 2]
        else:
            layers = [int(number) for number in self._options.layers.split("+")]
        for layer in layers:
            if not 0 <= layer < model.layers:
                raise InvalidRequest(
                    f"skip_layers names layer {shown(layer)}, but the model has the layers 0 to "
                    f"{model.layers - 1}; name some of them.",
                    "skip_layers",
                )
        parts = PARTS[ask.part or self._options.part]
        return Skipping(frozenset((layer, part) for layer in layers for part in parts))
