"""The directions of a matrix's outputs in which its products are largest."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Doubles, Floats

EXACT = 1024
"""Matrices with no more outputs, or inputs, are decomposed whole."""

SPARE = 16
"""Directions that are followed beside those that are wanted, where they are searched for."""

TURNS = 6
"""How often the directions are multiplied with the matrix, in such a search."""


def leading_directions(matrix: Floats, moments: Floats | None, rank: int) -> Floats:
    """U (N, rank) with orthonormal columns such that U U^T M is the best approximation of its rank
    of M (N, K), in the mean squared error of products with inputs x whose second moments, the sum
    of x^T x, are `moments` (K, K); of inputs that are all alike where those are None.

    With moments S = L L^T these are the left singular vectors of M L (Eckart, Young and Mirsky).
    Large matrices have them from a randomised search in the range of M S M^T (Halko, Martinsson and
    Tropp 2011, arXiv:0909.4061, algorithm 4.4) whose numbers are always the same.
    """
    outputs, inputs = matrix.shape
    if outputs <= min(EXACT, inputs):
        return _last_vectors(_product(matrix, matrix.T, moments), rank)
    wanted = min(rank + SPARE, outputs, inputs)
    if inputs <= EXACT:
        wanted = inputs
    random = np.random.default_rng(0).standard_normal((inputs, wanted)).astype(np.float32)
    basis: Floats = _orthonormal(matrix @ random)
    for _ in range(TURNS if wanted < inputs else 0):  # all directions are there at once
        basis = _orthonormal(_product(matrix, matrix.T @ basis, moments))
    inner = matrix.T @ basis
    small = _product(inner.T, inner, moments)
    turned: Floats = basis @ _last_vectors(small, rank)
    return turned


def _product(left: Floats, right: Floats, moments: Floats | None) -> Floats:
    """left S right."""
    weighted: Floats = right if moments is None else moments @ right
    found: Floats = left @ weighted
    return found


def _orthonormal(columns: Floats) -> Floats:
    found: Floats = np.linalg.qr(columns)[0].astype(np.float32)
    return found


def _last_vectors(symmetric: Floats, count: int) -> Floats:
    """The eigenvectors of the largest eigenvalues."""
    wide: Doubles = symmetric.astype(np.float64)
    found: Floats = np.linalg.eigh((wide + wide.T) / 2)[1][:, ::-1][:, :count].astype(np.float32)
    return found
