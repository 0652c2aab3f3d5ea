"""Feed-forward channels removed by the inverse of what their gradients have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ockham.core.arrays import Doubles
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import WidthOptions, choose, feed_forwards, narrow, read_inner

NAME = "mfac"


class MFacOptions(WidthOptions, frozen=True, forbid_unknown_fields=True):
    """`window` rows of the text give a gradient each; `damping` of their mean square is added to
    the diagonal."""

    window: int = 512
    damping: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}.")
        if not 0 < self.damping < math.inf:
            raise ConfigError(f"damping must be above 0 and finite, got {self.damping}.")


@register("transform", NAME, exact=False, paper="64")
class MFac:
    """Remove the channels of feed-forwards and experts whose removal costs least, where the others
    may make up for it.

    Optimal Brain Surgeon's cost of a channel k is 1 / (2 [F^-1]_kk), with F the empirical Fisher
    matrix of the channels of one feed-forward: the mean of s s^T, where s_k is the gradient of the
    loss with respect to a factor before channel k, one s for each row of a window. M-FAC (Frantar
    et al. 2021, arXiv:2107.03356, section 3.1) finds the inverse's diagonal without F: row by row,
    by the formula of Sherman and Morrison, in O(m^2) products of vectors for a window of m. Costs
    are multiplied by the rows that came. What is left of `down` is fitted to what all of it gave.
    It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[MFacOptions]] = MFacOptions

    def __init__(self, options: MFacOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        names = list(feed_forwards(model))
        scores: dict[str, Doubles] = {}
        for layer in model.gradients(NAME):
            for name, g in layer.outputs.items():
                if name in names:
                    a = layer.inner[name]
                    count = min(self._options.window, len(a))
                    rows = np.linspace(0, len(a) - 1, count).astype(int)
                    down = model.get(name).astype(np.float64)
                    gates = a[rows] * (g[rows].astype(np.float64) @ down)
                    scores[name] = len(a) * costs(gates, self._options.damping)
            model.tell(f"{NAME}: layer {layer.layer + 1} of {model.layers}")
        for name in names:  # nobody chose it
            scores.setdefault(name, np.zeros(model.get(name).shape[1]))
        inputs = read_inner(model, NAME, names) if self._options.compensate else {}
        return narrow(model, choose(scores, self._options), inputs, self._options.compensate)


def costs(gradients: Doubles, damping: float) -> Doubles:
    """1 / (2 [F^-1]_kk) of gradients (m, I), with F = c I + the mean of s s^T, c `damping` of the
    mean square: (I,). 0 where all gradients are."""
    level = damping * float(np.square(gradients).mean())
    if not level:
        return np.zeros(gradients.shape[1])
    found: Doubles = 0.5 / inverse_diagonal(gradients, level)
    return found


def inverse_diagonal(gradients: Doubles, level: float) -> Doubles:
    """The diagonal (I,) of (`level` I + G^T G / m)^-1, of gradients G (m, I)."""
    count, width = gradients.shape
    seen, weights = np.zeros_like(gradients), np.zeros(count)  # F^-1 s, and 1 / (m + s^T F^-1 s)
    diagonal = np.full(width, 1 / level)
    for number, s in enumerate(gradients):
        before = seen[:number]
        v = s / level - before.T @ (weights[:number] * (before @ s))
        seen[number], weights[number] = v, 1 / (count + s @ v)
        diagonal -= weights[number] * np.square(v)
    return diagonal
