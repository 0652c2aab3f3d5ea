"""Zeros whose loss the weights that stay make good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Block, LayerReading, Rewritable
from ockham.weights.gptq import factor_of_inverse
from ockham.weights.pruning import (
    PruneOptions,
    card,
    checked_pattern,
    least_of,
    of_layer,
    pruned_matrices,
)

NAME = "sparsegpt"


class SparseGptOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """`block` is how many inputs a mask is chosen for at a time, where no pattern does it."""

    block: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ConfigError(f"block must be at least 1, got {self.block}.")


@register("transform", NAME, exact=False)
class SparseGpt:
    """Put zeros in place of the weights whose loss the others can make good best, and let them.

    Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1: inputs go one after another; with U
    upper triangular and U^T U the inverse of the inputs' second moments H on a text, those weights
    of a block of inputs go whose w_ij^2 / U_jj^2 is least (of a matrix together, or with a pattern
    of each M inputs of a row), and w_ij / U_jj times row j of U is taken from the weights behind.
    Each layer is fitted to the inputs that it has in the model as it was. It needs a text. The
    zeros save bytes in a format that does not store them.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes",)
    Options: ClassVar[type[msgspec.Struct]] = SparseGptOptions
    needs_text = True

    def __init__(self, options: SparseGptOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        for reading in model.read(NAME):
            for block in of_layer(model, reading):
                self.apply_block(model, block, reading)
            if reading.layer is not None:
                model.tell(f"{NAME}: layer {reading.layer + 1} of {model.layers}")
        return card(model)

    def apply_block(self, model: Rewritable, block: Block, reading: LayerReading | None) -> None:
        assert reading is not None, "it needs a text"
        factors: dict[int, Floats] = {}  # matrices that read the same share their moments
        for name in pruned_matrices(block):
            weights, found = model.get(name), reading.inputs.get(name)
            checked_pattern(self._options, name, weights.shape[1])
            if found is None:  # no row reached it: an expert that nobody chose
                weights[least_of(np.abs(weights), self._options)] = 0
            else:
                if id(found) not in factors:
                    factors[id(found)] = factor_of_inverse(found.moments)
                weights = self.pruned(weights, found.moments, factors[id(found)])
            model.put(name, weights)

    def pruned(self, weights: Floats, moments: Floats, factor: Floats) -> Floats:
        """Weights (N, K) with zeros, for inputs of these second moments (K, K), of whose inverse
        U = `factor` (K, K) is the Cholesky factor. Inputs that were never anything but zero lose
        their weights."""
        rest = np.array(weights.T, np.float32, order="C")  # (K, N): one input is one row
        rest[moments.diagonal() == 0] = 0
        step = self._options.block
        kept = self._options.kept_of
        if kept is not None:
            step = -(-step // kept[1]) * kept[1]  # whole groups
        for start in range(0, len(rest), step):
            part = slice(start, min(start + step, len(rest)))
            own, inner = rest[part], factor[part, part]
            diagonal = np.diag(inner)[:, None]
            gone = None if kept is not None else self._least(np.square(own / diagonal))
            errors = np.zeros_like(own)
            for i in range(len(own)):
                if kept is not None and i % kept[1] == 0:
                    group = slice(i, i + kept[1])
                    mask = least_of(np.square(own[group] / diagonal[group]).T, self._options).T
                removed = mask[i % kept[1]] if kept is not None else gone[i]  # type: ignore[index]
                errors[i] = np.where(removed, own[i] / inner[i, i], 0)
                own[i + 1 :] -= inner[i, i + 1 :, None] * errors[i]
                own[i][removed] = 0
            rest[part.stop :] -= factor[part, part.stop :].T @ errors
        return np.ascontiguousarray(rest.T)

    def _least(self, scores: Floats) -> npt.NDArray[np.bool_]:
        """Where the scores of a block (inputs, N) are the least of all."""
        count = round(self._options.zeros * scores.size)
        found = np.zeros(scores.size, np.bool_)
        found[np.argpartition(scores.ravel(), count - 1)[:count] if count else []] = True
        return found.reshape(scores.shape)
