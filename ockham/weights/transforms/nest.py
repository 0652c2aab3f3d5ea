"""Feed-forwards whose first channels are a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import feed_forwards, read_inner, reorder, value_scores

NAME = "nest"


@register("transform", NAME, exact=False, paper="125")
class Nest:
    """Sort the channels of feed-forwards and experts, those that add most to the output on a text
    first, so that the first rows of each are a smaller model.

    The order of channels means nothing, so that every output stays what it is, in infinite
    precision. It is where Once-for-All begins (Cai et al. 2020, arXiv:1908.09791, section 3.3;
    there by the weights' size, here by values times weights), without its training of the smaller
    models. `--transform width:0.5` takes one out. It needs a text.
    """

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        inputs = read_inner(model, NAME, list(feed_forwards(model)))
        for name, scores in value_scores(model, inputs).items():
            reorder(model, name, np.argsort(-scores, kind="stable"))
        return {}
