"""Zeros in place of the smallest weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.registry import register
from ockham.core.seams import Block, LayerReading, Rewritable
from ockham.weights.pruning import PruneOptions, card, checked_pattern, least_of, pruned_matrices

NAME = "magnitude"


@register("transform", NAME, exact=False)
class Magnitude:
    """Put zeros in place of the weights of each row that are smallest.

    It is what other masks are measured against: no text is read. Nothing is made good. The zeros
    save bytes in a format that does not store them.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes",)
    Options: ClassVar[type[msgspec.Struct]] = PruneOptions
    needs_text = False

    def __init__(self, options: PruneOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        for block in model.blocks:
            self.apply_block(model, block, None)
        return card(model)

    def apply_block(self, model: Rewritable, block: Block, reading: LayerReading | None) -> None:
        for name in pruned_matrices(block):
            weights = model.get(name)
            checked_pattern(self._options, name, weights.shape[1])
            weights[least_of(np.abs(weights), self._options)] = 0
            model.put(name, weights)
