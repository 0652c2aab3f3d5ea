"""The kernels' own exp, tanh and gelu: their errors, and the same bits on every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ockham.kernels.native import core
from tests.helpers import isas

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

Floats = np.ndarray


def floats(stride: int) -> Floats:
    """Every `stride`-th finite float."""
    bits = np.arange(0, 0x7F800000, stride, dtype=np.uint32)
    positive = bits.view(np.float32)
    return np.concatenate([positive, -positive])


def worst(found: Floats, expected: np.ndarray) -> float:
    """The largest error in units of the last place of the expected float."""
    rounded = expected.astype(np.float32)
    return float((np.abs(found.astype(np.float64) - expected) / np.spacing(np.abs(rounded))).max())


def test_exp_is_within_its_stated_error() -> None:
    x = floats(997)
    x = x[(x >= -87.33654) & (x <= 88.37626)]
    found = core.row_function(core.detect(), "exp", x)
    assert worst(found, np.exp(x.astype(np.float64))) < 1.5


def test_exp_at_and_beyond_its_limits() -> None:
    x = np.array([0.0, -0.0, -87.4, -1e30, -np.inf, 88.4, 1e30, np.inf, np.nan], np.float32)
    found = core.row_function(core.detect(), "exp", x)
    expected = np.array([1, 1, 0, 0, 0, np.inf, np.inf, np.inf, np.nan], np.float32)
    assert np.array_equal(found, expected, equal_nan=True)


def test_tanh_is_within_its_stated_error() -> None:
    x = floats(997)
    found = core.row_function(core.detect(), "tanh", x)
    normal = np.abs(x) > 1e-37
    assert worst(found[normal], np.tanh(x[normal].astype(np.float64))) < 2.0
    assert np.array_equal(np.sign(found), np.sign(x))
    limits = np.array([np.inf, -np.inf, np.nan], np.float32)
    found = core.row_function(core.detect(), "tanh", limits)
    assert np.array_equal(found, [1.0, -1.0, np.nan], equal_nan=True)


def test_gelu_is_within_its_stated_error() -> None:
    x = floats(997)
    x = x[np.abs(x) < 1e30]
    found = core.row_function(core.detect(), "gelu", x)
    wide = x.astype(np.float64)
    expected = 0.5 * wide * np.array([math.erfc(-v) for v in (wide / math.sqrt(2)).tolist()])
    positive = x > 1e-37
    assert worst(found[positive], expected[positive]) < 2.0
    assert np.abs(found - expected)[x <= 0].max() < 1.5e-7
    assert np.isnan(core.row_function(core.detect(), "gelu", np.array([np.nan], np.float32)))[0]
    assert core.row_function(core.detect(), "gelu", np.array([np.inf], np.float32))[0] == np.inf


@pytest.mark.parametrize("name", ["exp", "tanh", "gelu"])
def test_instruction_sets_and_places_in_a_vector_agree(name: str) -> None:
    x = floats(10007)
    expected = core.row_function(core.Isa.PORTABLE, name, x).view(np.uint32)
    for isa in map(core.parse_isa, isas.AVAILABLE):
        assert np.array_equal(core.row_function(isa, name, x).view(np.uint32), expected)
        one_by_one = [core.row_function(isa, name, x[i : i + 1])[0] for i in range(0, 5000, 7)]
        assert np.array_equal(np.array(one_by_one).view(np.uint32), expected[0:5000:7])
