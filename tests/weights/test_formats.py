"""The two trivial formats: what they store, what they compute, what they refuse."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ockham.core.errors import ModelError
from ockham.core.registry import find, techniques
from ockham.kernels.backends import find_layout_of
from ockham.kernels.layouts import ROWS
from ockham.weights.bf16 import Bf16
from ockham.weights.blocks import WIDENED_VALUES, all_finite, round_to_bfloat16
from ockham.weights.fp32 import Fp32


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_formats_are_registered_as_exact(name: str) -> None:
    technique = find("format", name)
    assert technique.exact
    assert technique.summary
    assert technique in techniques("format")


def test_fp32_is_the_plain_product() -> None:
    weight, x = matrix(30, 20), matrix(7, 20, 1)
    packed = Fp32().pack(30, 20, iter([weight[:11], weight[11:]]))
    assert np.allclose(packed.matmul(x), x @ weight.T, rtol=1e-6)
    assert (packed.rows(np.array([3, 3, 29], np.int32)) == weight[[3, 3, 29]]).all()


@pytest.mark.parametrize("rows", [5, WIDENED_VALUES // 256 + 300])
def test_bf16_multiplies_rounded_inputs_with_rounded_weights_in_fp32(rows: int) -> None:
    weight, x = matrix(rows, 256), matrix(4, 256, 1)
    packed = Bf16().pack(rows, 256, iter([weight]))
    rounded = weight.astype(ml_dtypes.bfloat16).astype(np.float64)
    inputs = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert np.allclose(packed.matmul(x), inputs @ rounded.T, atol=1e-4)
    assert not np.allclose(packed.matmul(x), x.astype(np.float64) @ rounded.T, atol=1e-4)


def test_a_layout_says_beforehand_what_packing_takes() -> None:
    for weight_format in (Bf16(), Fp32()):
        for layout in (ROWS, find_layout_of("auto")):
            packed = weight_format.pack(30, 20, iter([matrix(30, 20)]), layout)
            held = sum(array.nbytes for array in packed.arrays.values())
            assert packed.nbytes == layout.nbytes(weight_format, 30, 20) == held


def test_rounding_is_to_the_nearest_and_to_even_on_a_tie() -> None:
    values = np.array([1.00390625, 1.01171875, 1.00390637], np.float32)
    assert round_to_bfloat16(values).tolist() == [1.0, 1.015625, 1.0078125]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_nan_and_infinity_of_either_sign_are_found(dtype: type) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    fine = np.array([[0.0, -0.0, 1.5, largest, -largest]]).astype(dtype)
    assert all_finite(fine)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        broken = fine.copy()
        broken[0, 2] = bad
        assert not all_finite(broken)
        with pytest.raises(ModelError, match="NaN or infinity stands in rows 2 to 2"):
            Fp32().pack(3, 5, iter([np.zeros((2, 5), dtype), broken]))


def test_a_value_that_bf16_cannot_hold_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a value that bfloat16 cannot hold \(rows 0 to 0\)"):
        Bf16().pack(1, 2, iter([np.array([[1.0, 3.4e38]], np.float32)]))


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ModelError, match="only 2 of 3 rows"):
        Fp32().pack(3, 5, iter([matrix(2, 5)]))
    with pytest.raises(ModelError, match="do not fit at row 2"):
        Fp32().pack(3, 5, iter([matrix(2, 5), matrix(2, 5)]))
