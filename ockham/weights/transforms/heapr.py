"""Atomic experts removed by what the loss loses with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Doubles
from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import WidthOptions, choose, feed_forwards, narrow, read_inner

NAME = "heapr"


@register("transform", NAME, exact=False, paper="297")
class Heapr:
    """Rank the channels of all experts and feed-forwards by what the loss loses with them, and
    remove the least, wherever they are.

    An atomic expert is a row of gate and up and a column w_k of down. Its score is
    mean(a_k^2) w_k^T G w_k, with its values a_k on a text and G the mean of g g^T, g the gradient
    of the text's negative log-likelihood at the expert's output (HEAPr, arXiv:2509.22299): two
    readings and one way back. Sums over the rows of a text stand for the means, so that experts
    that are chosen seldom count as little as they do. What is left of down is fitted to what all of
    it gave. Widths become unequal. It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[msgspec.Struct]] = WidthOptions

    def __init__(self, options: WidthOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        names = list(feed_forwards(model))
        scores: dict[str, Doubles] = {}
        for layer in model.gradients(NAME):
            for name, g in layer.outputs.items():
                if name in names:
                    down = model.get(name).astype(np.float64)
                    scores[name] = channel_scores(
                        layer.inner[name].astype(np.float64), g.astype(np.float64), down
                    )
            model.tell(f"{NAME}: layer {layer.layer + 1} of {model.layers}")
        for name in names:  # nobody chose it
            scores.setdefault(name, np.zeros(model.get(name).shape[1]))
        inputs = read_inner(model, NAME, names) if self._options.compensate else {}
        return narrow(model, choose(scores, self._options), inputs, self._options.compensate)


def channel_scores(a: Doubles, g: Doubles, down: Doubles) -> Doubles:
    """sum(a_k^2) w_k^T G w_k of values a (rows, I), gradients g (rows, D) and W (D, I), with
    G = g^T g / rows: (I,)."""
    seen = (g @ down) ** 2
    scores: Doubles = np.square(a).sum(axis=0) * seen.mean(axis=0)
    return scores
