"""What matrices of low rank lose, beside rounding."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.low_rank import FORMATS, losses


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_of_low_rank_loses_nothing_and_one_of_noise_much(name: str) -> None:
    rng = np.random.default_rng(0)
    moments = np.diag(rng.uniform(0.5, 2.0, 256)).astype(np.float32)
    low = (rng.standard_normal((128, 4)) @ rng.standard_normal((4, 256))).astype(np.float32)
    rank, rounded, thin = losses(low, moments, name)
    assert rank >= 4
    assert thin < 1e-3 < rounded
    noise = rng.standard_normal((128, 256)).astype(np.float32)
    rank, rounded, thin = losses(noise, moments, name)
    assert rank * (128 + 256) * 8 <= FORMATS[name] * 128 * 256
    assert thin > 3 * rounded
