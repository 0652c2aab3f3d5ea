"""Corrections: sums of low rank that come nearest to what rounding takes from products."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import make, techniques
from ockham.kernels.corrected import CorrectedLinear, correction_bytes
from ockham.kernels.layouts import ROWS
from ockham.weights import leading
from ockham.weights.correcting import corrected
from ockham.weights.int4 import Int4
from ockham.weights.leading import leading_directions
from ockham.weights.stored import read_record, stored_matrix

NAMES = [each.name for each in techniques("correction")]


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def uneven_moments(inputs: int) -> np.ndarray:
    """Of inputs that are correlated, and of very different sizes."""
    random = np.random.default_rng(7)
    x = normal(3 * inputs, inputs, 3) @ normal(inputs, inputs, 4)
    x *= np.exp(random.standard_normal(inputs)).astype(np.float32)
    return (x.T @ x).astype(np.float32)


def lost(error: np.ndarray, a: np.ndarray, b: np.ndarray, moments: np.ndarray) -> float:
    """The sum of squares that are left of products with inputs of these moments."""
    left = (error - b @ a).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", left, moments.astype(np.float64), left))


@pytest.mark.parametrize("exact", [1024, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(60, 90), (90, 60)])
def test_directions_are_the_singular_vectors_of_weighted_products(
    outputs: int, inputs: int, exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "EXACT", exact)
    matrix, moments = normal(outputs, inputs), uneven_moments(inputs)
    for weights in (None, moments):
        used = np.eye(inputs) if weights is None else moments.astype(np.float64)
        root = np.linalg.cholesky(used)
        best = float(np.square(np.linalg.svd(matrix @ root)[1][6:]).sum())
        u = leading_directions(matrix, weights, 6)
        assert np.allclose(u.T @ u, np.eye(6), atol=1e-5)
        found = lost(matrix, u.T @ matrix, u, used)
        assert found <= best * (1.0001 if exact > 8 else 1.03)


def test_weights_of_the_inputs_count_where_they_are_known() -> None:
    error, moments = normal(80, 64), uneven_moments(64)
    plain = make("correction", "lorc:rank=8").fit(error, moments)
    weighted = make("correction", "weighted:rank=8").fit(error, moments)
    nothing = np.zeros_like(plain[0]), plain[1]
    assert lost(error, *weighted, moments) < 0.8 * lost(error, *plain, moments)
    alike = np.eye(64, dtype=np.float32)
    assert lost(error, *plain, alike) < lost(error, *weighted, alike) < lost(error, *nothing, alike)


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_is_added_to_products_and_to_rows(name: str) -> None:
    weight, x, moments = normal(48, 64), normal(5, 64, 1), uneven_moments(64)
    base = Int4.of(32).pack(48, 64, [weight])
    made = corrected(base, weight, make("correction", f"{name}:rank=6"), moments)
    a, b, factors = made.sum()
    assert (a.shape, b.shape, factors.shape) == ((6, 64), (48, 6), (6,))
    both = (b.astype(np.float64) * factors) @ a.astype(np.float64)
    assert np.allclose(made.matmul(x), base.matmul(x) + x @ both.T, atol=1e-4)
    ids = np.array([3, 3, 40], np.int32)
    assert np.allclose(made.rows(ids), base.rows(ids) + both[ids], atol=1e-5)
    assert made.nbytes == base.nbytes + correction_bytes(48, 64, 6)
    error = weight - base.rows(np.arange(48, dtype=np.int32))
    found = lost(error, a.astype(np.float32), b * factors, moments)
    fitted = make("correction", f"{name}:rank=6").fit(error, moments)
    assert found == pytest.approx(lost(error, *fitted, moments), rel=0.02)  # A and B are int8


@pytest.mark.parametrize("name", NAMES)
def test_no_rank_is_above_that_of_the_matrix(name: str) -> None:
    error = normal(5, 64)
    a, b = make("correction", f"{name}:rank=32").fit(error, uneven_moments(64))
    assert a.shape == (5, 64)
    assert np.allclose(b @ a, error, atol=1e-4)
    a, b = make("correction", f"{name}:rank=4").fit(np.zeros_like(error), uneven_moments(64))
    made = CorrectedLinear(Int4.of(32).pack(5, 64, [error]), 4)
    made.set_sum(a, b)
    assert not made.sum()[2].any()


def test_a_corrected_matrix_is_described_with_its_rank() -> None:
    made = CorrectedLinear(Int4.of(32).pack(48, 64, [normal(48, 64)]), 6)
    record = stored_matrix(made).record()
    assert record["rank"] == 6
    blank = read_record(record).blank(ROWS)
    assert isinstance(blank, CorrectedLinear)
    assert {name: array.shape for name, array in blank.arrays.items()} == {
        name: array.shape for name, array in made.arrays.items()
    }
    assert "rank" not in stored_matrix(made.base).record()
    for rank in (-1, 49, "6", True):
        with pytest.raises(ValueError, match="its rank is"):
            read_record({**record, "rank": rank})


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        make("correction", "lorc:rank=0")
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        make("correction", "weighted:rank=0")
    for moments in (None, np.full((64, 64), np.nan, np.float32)):
        with pytest.raises(ModelError, match="not finite on the calibration text"):
            make("correction", "weighted").fit(normal(5, 64), moments)
