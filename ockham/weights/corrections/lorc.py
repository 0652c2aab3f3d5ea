"""Low-rank compensation of the weights' rounding error, without a text."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ockham.core.arrays import Floats
from ockham.core.registry import register
from ockham.weights.correcting import RankOptions
from ockham.weights.leading import leading_directions


@register("correction", "lorc", exact=False, paper="20")
class Lorc:
    """Adds the part of low rank that comes nearest to the rounding error of the weights (LoRC,
    ZeroQuant-V2, Yao et al. 2023, arXiv:2303.08302).

    Of the error E = W - Q it keeps the largest singular values, U U^T E, and takes all inputs for
    alike. It needs no text. Costs rank * (N + K) bytes for a matrix (N, K).
    """

    name: ClassVar[str] = "lorc"
    needs_text: ClassVar[bool] = False
    Options: ClassVar[type[msgspec.Struct]] = RankOptions

    def __init__(self, options: RankOptions) -> None:
        self.rank = options.rank

    def fit(self, error: Floats, moments: Floats | None) -> tuple[Floats, Floats]:
        b = leading_directions(error, None, min(self.rank, *error.shape))
        return b.T @ error, b
