"""Scales that protect the weights of large activations from rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.registry import make, register
from ockham.core.seams import Block, Format, Inputs, LayerReading, Rewritable
from ockham.weights.balance import Joint, joints, scale, shared

NAME = "awq"
SMALLEST = 1e-4


class AwqOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`format` and `group` are what the weights will be rounded to; `grid` is how many powers
    between 0 and 1 are tried."""

    format: str = "int4"
    group: int = 64
    grid: int = 10
    inner: bool = True

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ConfigError(f"grid must be at least 1, got {self.grid}.")


@register("transform", NAME, exact=False)
class Awq:
    """Scale up the weights of channels whose activations are large, so that rounding hurts them
    less, and divide the activations.

    s_j = mean|x_j|^a, with the a that makes the products of the rounded weights err least on a text
    (Lin et al. 2023, arXiv:2306.00978, equations 4 and 5); a = 0 changes nothing and is tried too.
    The error is exact for the text: D M D^T of what rounding changes, D, and the inputs' second
    moments, M. Every output stays what it is, in infinite precision, until weights are rounded.
    """

    saves: ClassVar[tuple[str, ...]] = ("rounding error",)
    Options: ClassVar[type[msgspec.Struct]] = AwqOptions
    needs_text = True

    def __init__(self, options: AwqOptions) -> None:
        self._options = options
        found: Format = make("format", options.format)
        try:
            self._format = found.of_group(options.group)
        except ValueError:
            raise ConfigError(
                f"the format {options.format} has no groups of {options.group}; name another group."
            ) from None
        self._gains: list[float] = []

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        for reading in model.read(NAME):
            for block in model.blocks:
                if block.layer == reading.layer:
                    self.apply_block(model, block, reading)
            if reading.layer is not None:
                model.tell(f"{NAME}: layer {reading.layer + 1} of {model.layers}")
        gain = float(np.mean(self._gains)) if self._gains else 1.0
        return {"error_left": round(gain, 4)}

    def apply_block(self, model: Rewritable, block: Block, reading: LayerReading | None) -> None:
        assert reading is not None, "it needs a text"
        for joint in joints(block, self._options.inner):
            found = [reading.inputs[name] for name in joint.reads if name in reading.inputs]
            if found:
                self._balance(model, joint, found)

    def _balance(self, model: Rewritable, joint: Joint, found: Sequence[Inputs]) -> None:
        rows = sum(each.rows for each in found)
        mean = np.sum([each.absolute for each in found], axis=0) / np.float32(rows)
        moments = np.sum([each.moments for each in found], axis=0)
        mean = shared(model, joint, np.maximum(mean, SMALLEST))
        matrices = [model.get(name) for name in joint.reads]
        ones = np.ones(len(mean), np.float32)
        before = best = self._error(matrices, ones, moments)
        chosen = None
        for step in range(1, self._options.grid + 1):
            scales = mean ** np.float32(step / self._options.grid)
            scales = scales / np.sqrt(scales.max() * scales.min())
            error = self._error(matrices, scales, moments)
            if error < best:
                best, chosen = error, scales
        self._gains.append(best / before if before else 1.0)
        if chosen is not None:
            scale(model, joint, chosen.astype(np.float32))

    def _error(self, matrices: Sequence[Floats], scales: Floats, moments: Floats) -> float:
        """The sum of squares by which the products on the text are off."""
        total = 0.0
        for matrix in matrices:
            scaled = matrix * scales
            rounded = self._format.decode(self._format.encode(scaled), matrix.shape[1])
            change = (rounded - scaled) / scales
            total += float(np.einsum("ij,ij->", change @ moments, change))
        return total
