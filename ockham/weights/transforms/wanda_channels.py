"""Feed-forward channels removed by what they add to the output on a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import (
    WidthOptions,
    choose,
    feed_forwards,
    narrow,
    read_inner,
    value_scores,
)

NAME = "wanda_channels"


@register("transform", NAME, exact=False)
class WandaChannels:
    """Remove the channels of feed-forwards and experts whose values times weights are smallest.

    The score of a channel k is mean(a_k^2) |w_k|^2, with its values a_k on a text and its column
    w_k of `down`: Wanda's (Sun et al. 2023, arXiv:2306.11695, equation 1) for whole channels. What
    is left of `down` is fitted to what all of it gave. It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[msgspec.Struct]] = WidthOptions

    def __init__(self, options: WidthOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        inputs = read_inner(model, NAME, list(feed_forwards(model)))
        scores = value_scores(model, inputs)
        return narrow(model, choose(scores, self._options), inputs, self._options.compensate)
