"""Outliers of activations moved into weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Block, LayerReading, Rewritable
from ockham.weights.balance import joints, scale, shared

NAME = "smoothquant"
SMALLEST = 1e-5
"""Of a scale: channels that are nearly always zero are not blown up."""


class SmoothQuantOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`strength` is the paper's alpha: 0 moves nothing but the weights' own differences, 1 all of
    the activations' into the weights. `inner` also balances values and the up projection."""

    strength: float = 0.5
    inner: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ConfigError(f"strength must be between 0 and 1, got {self.strength}.")


@register("transform", NAME, exact=False)
class SmoothQuant:
    """Divide each input channel by a scale and multiply its weights by it, so that outliers of
    activations are shared with the weights.

    s_j = max|x_j|^a / max|W_j|^(1 - a) over a text and over all matrices that read the channel
    (Xiao et al. 2022, arXiv:2211.10438, equation 4); the scale goes into the norm before. Every
    output stays what it is, in infinite precision. It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ("rounding error",)
    Options: ClassVar[type[msgspec.Struct]] = SmoothQuantOptions
    needs_text = True

    def __init__(self, options: SmoothQuantOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        for reading in model.read(NAME):
            for block in model.blocks:
                if block.layer == reading.layer:
                    self.apply_block(model, block, reading)
        return {}

    def apply_block(self, model: Rewritable, block: Block, reading: LayerReading | None) -> None:
        assert reading is not None, "it needs a text"
        a = np.float32(self._options.strength)
        for joint in joints(block, self._options.inner):
            found = [reading.inputs[name] for name in joint.reads if name in reading.inputs]
            if not found:
                continue
            inputs = np.max([each.largest for each in found], axis=0)
            weights = np.max([np.abs(model.get(name)).max(axis=0) for name in joint.reads], axis=0)
            inputs, weights = shared(model, joint, inputs), shared(model, joint, weights)
            scales = np.maximum(inputs, SMALLEST) ** a / np.maximum(weights, SMALLEST) ** (1 - a)
            scale(model, joint, np.maximum(scales, SMALLEST).astype(np.float32))
