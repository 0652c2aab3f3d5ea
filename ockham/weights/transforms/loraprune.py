"""Feed-forward channels removed by the gradients of low-rank factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ockham.core.arrays import Doubles, Floats
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import WidthOptions, choose, feed_forwards, narrow, read_inner

NAME = "loraprune"


class LoraPruneOptions(WidthOptions, frozen=True, forbid_unknown_fields=True):
    """The factors have `rank` columns and are multiplied by `alpha` / `rank`; they are learned in
    `steps` readings of the text, each value by at most `rate`. What earlier readings found counts
    `memory` of what a later one says. `seed` draws the factors."""

    rank: int = 8
    alpha: float = 16.0
    steps: int = 4
    rate: float = 1e-3
    memory: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha must be above 0 and finite, got {self.alpha}.")
        if not 0 <= self.rate < math.inf:
            raise ConfigError(f"rate must be at least 0 and finite, got {self.rate}.")
        if not 0 <= self.memory < 1:
            raise ConfigError(f"memory must be at least 0 and below 1, got {self.memory}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")


@register("transform", NAME, exact=False, paper="18")
class LoraPrune:
    """Remove the channels of feed-forwards and experts that the loss needs least, as the gradients
    of low-rank factors beside each `down` tell.

    LoRAPrune (Zhang et al. 2023, arXiv:2305.18403, section 3): with factors B (D, r) and A (r, I)
    whose gradients are b and a, the gradient of the whole matrix is taken to be b A + B a - b a,
    so that it is never computed; a weight's importance is that times the weight. A channel has the
    sum of its column, as a share of its layer's (in squares). The factors learn for some readings,
    over which importance is averaged, and are left out of the result. What is left of `down` is
    fitted to what all of it gave. It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[LoraPruneOptions]] = LoraPruneOptions

    def __init__(self, options: LoraPruneOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        options, names = self._options, list(feed_forwards(model))
        rng = np.random.default_rng(options.seed)
        whole = {name: model.get(name) for name in names}
        factors = {name: Factors.drawn(whole[name], options, rng) for name in names}
        scores: dict[str, Doubles] = {}
        for step in range(options.steps):
            for layer in model.gradients(NAME):
                for name, g in layer.outputs.items():
                    if name in factors:
                        own = factors[name]
                        merged = whole[name].astype(np.float64) + own.product
                        own.look(layer.inner[name].astype(np.float64), g.astype(np.float64))
                        found = own.importance(merged)
                        before = scores.get(name, found)
                        scores[name] = options.memory * before + (1 - options.memory) * found
            for name, own in factors.items():
                own.learn(options.rate)
                model.put(name, (whole[name] + own.product).astype(np.float32))
            model.tell(f"{NAME}: reading {step + 1} of {options.steps}")
        for name in names:
            model.put(name, whole[name])
            scores.setdefault(name, np.zeros(whole[name].shape[1]))  # nobody chose it
        inputs = read_inner(model, NAME, names) if options.compensate else {}
        return narrow(model, choose(scores, options), inputs, options.compensate)


@dataclass
class Factors:
    """B (D, r) and A (r, I) beside one matrix, and the gradients of both."""

    b: Doubles
    a: Doubles
    scale: float
    b_gradient: Doubles
    a_gradient: Doubles

    @classmethod
    def drawn(cls, matrix: Floats, options: LoraPruneOptions, rng: np.random.Generator) -> Factors:
        """For a matrix (D, I): B is 0 and A drawn, so that the product is 0 at first. The
        rank is that of the options, and at most I."""
        outputs, inputs = matrix.shape
        rank = min(options.rank, inputs)
        a = rng.standard_normal((rank, inputs)) / np.sqrt(inputs)
        b = np.zeros((outputs, rank))
        return cls(b, a, options.alpha / rank, np.zeros_like(b), np.zeros_like(a))

    @property
    def product(self) -> Doubles:
        """What stands beside the matrix: (D, I)."""
        product: Doubles = self.scale * (self.b @ self.a)
        return product

    def look(self, inputs: Doubles, gradients: Doubles) -> None:
        """Take the gradients of the factors from the inputs (rows, I) of the matrix and the
        gradients (rows, D) at its outputs: no product has the size of the matrix."""
        self.b_gradient = self.scale * (gradients.T @ (inputs @ self.a.T))
        self.a_gradient = self.scale * ((self.b.T @ gradients.T) @ inputs)

    def importance(self, matrix: Doubles) -> Doubles:
        """Of each channel (I,) of the matrix (D, I), the sum of |weight times gradient| of its
        column; all channels' squares together are 1."""
        gradient = (
            self.b_gradient @ self.a + self.b @ self.a_gradient - self.b_gradient @ self.a_gradient
        )
        summed: Doubles = np.abs(gradient * matrix).sum(axis=0)
        size = float(np.linalg.norm(summed))
        return summed / size if size else summed

    def learn(self, rate: float) -> None:
        """One step against the gradients, whose root mean square is taken to be 1."""
        for values, gradient in ((self.b, self.b_gradient), (self.a, self.a_gradient)):
            size = float(np.sqrt(np.square(gradient).mean()))
            if size:
                values -= rate * gradient / size
