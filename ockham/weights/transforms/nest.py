"""Feed-forwards whose first channels are a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import sort_channels

NAME = "nest"


@register("transform", NAME, exact=False, paper="125")
class Nest:
    """Sort the channels of feed-forwards and experts, those that add most to the output on a text
    first, so that the first rows of each are a smaller model.

    The order of channels means nothing, so that every output stays what it is, in infinite
    precision. It is where Once-for-All begins (Cai et al. 2020, arXiv:1908.09791, section 3.3;
    there by the weights' size, here by values times weights), without its training of the smaller
    models, which is `ockham train nested`. `--transform width:0.5` takes one out. It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ()

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        sort_channels(model, NAME)
        return {}
