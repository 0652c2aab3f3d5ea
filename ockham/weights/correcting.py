"""From a rounded matrix to one whose products are corrected."""

from __future__ import annotations

from typing import cast

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Correction, FillableLinear, Linear
from ockham.kernels.corrected import CorrectedLinear
from ockham.kernels.layouts import HeldLinear


class RankOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rank` is the rank of what is added."""

    rank: int = 32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, got {self.rank}.")


def corrected(
    base: Linear, weights: Floats, correction: Correction, moments: Floats | None
) -> CorrectedLinear:
    """`base`, the rounded weights (N, K), with the sum that a correction fits to what it lacks.
    Raises ModelError as `Correction.fit` does, and for a matrix that no layout holds."""
    if not isinstance(base, HeldLinear):
        raise ModelError(f"products with weights in {base.format!r} cannot be corrected.")
    rounded = base.rows(np.arange(base.out_features, dtype=np.int32))
    a, b = correction.fit(weights - rounded, moments)
    made = CorrectedLinear(cast(FillableLinear, base), len(a))
    made.set_sum(a, b)
    return made
