"""Feed-forward channels removed by the size of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import WidthOptions, choose, magnitudes, narrow, read_inner

NAME = "magnitude_channels"


class MagnitudeOptions(WidthOptions, frozen=True, forbid_unknown_fields=True):
    """`share` of all channels goes; nothing is fitted, so that no text is needed."""

    compensate: bool = False


@register("transform", NAME, exact=False)
class MagnitudeChannels:
    """Remove the channels of feed-forwards and experts whose weights are smallest.

    A channel's size is the product of the norms of its gate's and up's row and its down's column.
    It is what others are measured against: no text is read (unless `compensate`).
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[msgspec.Struct]] = MagnitudeOptions

    def __init__(self, options: MagnitudeOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        kept = choose(magnitudes(model), self._options)
        fits = self._options.compensate
        moments = read_inner(model, NAME, list(kept)) if fits else {}
        return narrow(model, kept, moments, fits)
