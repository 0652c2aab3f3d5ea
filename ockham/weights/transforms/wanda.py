"""Zeros in place of the weights that add least to an output on a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.registry import register
from ockham.core.seams import Block, LayerReading, Rewritable
from ockham.weights.pruning import (
    PruneOptions,
    card,
    checked_pattern,
    least_of,
    of_layer,
    pruned_matrices,
)

NAME = "wanda"


@register("transform", NAME, exact=False)
class Wanda:
    """Put zeros in place of the weights of each row whose size times that of their input on a text
    is smallest.

    The score is |w_ij| ||x_j||, compared within a row (Sun et al. 2023, arXiv:2306.11695, equation
    1). Nothing is made good. Each layer is scored by the inputs that it has in the model as it was.
    It needs a text. The zeros save bytes in a format that does not store them.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes",)
    Options: ClassVar[type[msgspec.Struct]] = PruneOptions
    needs_text = True

    def __init__(self, options: PruneOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        for reading in model.read(NAME):
            for block in of_layer(model, reading):
                self.apply_block(model, block, reading)
        return card(model)

    def apply_block(self, model: Rewritable, block: Block, reading: LayerReading | None) -> None:
        assert reading is not None, "it needs a text"
        for name in pruned_matrices(block):
            weights, found = model.get(name), reading.inputs.get(name)
            checked_pattern(self._options, name, weights.shape[1])
            scores = np.abs(weights)
            if found is not None:  # else no row reached it: an expert that nobody chose
                scores *= np.sqrt(np.maximum(found.moments.diagonal(), 0))
            weights[least_of(scores, self._options)] = 0
            model.put(name, weights)
