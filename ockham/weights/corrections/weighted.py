"""Low-rank compensation of what rounding does to products, weighted by the inputs of a text."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.core.registry import register
from ockham.weights.correcting import RankOptions
from ockham.weights.leading import leading_directions

DAMPING = 0.01
"""Share of the moments' mean diagonal that is added to it: a text shows only some inputs."""


@register("correction", "weighted", exact=False, paper="20")
class Weighted:
    """Adds the part of low rank that comes nearest to what rounding takes from the products of a
    calibration text (LoRC of ZeroQuant-V2, arXiv:2303.08302, weighted as in QERA, Zhang et al.
    2024, arXiv:2410.06040).

    With the second moments S of a matrix's inputs and the error E = W - Q, the sum U U^T E, where U
    are the leading eigenvectors of E S E^T, errs least in the mean square of the products: a closed
    form, that needs neither a root of S nor its inverse. Costs rank * (N + K) bytes for a matrix
    (N, K).
    """

    name: ClassVar[str] = "weighted"
    needs_text: ClassVar[bool] = True
    Options: ClassVar[type[msgspec.Struct]] = RankOptions

    def __init__(self, options: RankOptions) -> None:
        self.rank = options.rank

    def fit(self, error: Floats, moments: Floats | None) -> tuple[Floats, Floats]:
        if moments is None or not np.isfinite(moments).all():
            raise ModelError("the inputs of this product are not finite on the calibration text.")
        mean = float(np.einsum("ii->i", moments).mean())
        scaled: Floats = moments / np.float32(mean) if mean > 0 else np.zeros_like(moments)
        scaled += np.float32(DAMPING) * np.eye(len(moments), dtype=np.float32)
        b = leading_directions(error, scaled, min(self.rank, *error.shape))
        return b.T @ error, b
