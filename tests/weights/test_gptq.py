"""Calibrated int4: the codes fit the outputs, not the weights."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.errors import ModelError
from ockham.core.registry import make
from ockham.kernels.cpu_layout import PANELS
from ockham.kernels.layouts import ROWS
from ockham.kernels.native import core
from ockham.weights.gptq import DAMPING, calibrated_codes, factor_of_inverse
from ockham.weights.int4 import GROUPS, Int4


def weights(rows: int = 37, columns: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def correlated_inputs(columns: int = 256, count: int = 2000) -> np.ndarray:
    """Inputs of a few directions and some noise, of very different sizes."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((count, 40)) @ rng.standard_normal((40, columns))
    sizes = np.exp(rng.standard_normal(columns))
    return ((mixed + 0.3 * rng.standard_normal((count, columns))) * sizes).astype(np.float32)


def output_error(packed: object, weight: np.ndarray, x: np.ndarray) -> float:
    rows = packed.rows(np.arange(len(weight), dtype=np.int32))  # type: ignore[attr-defined]
    return float(np.square(x @ (rows - weight).T).sum())


@pytest.mark.parametrize("group", GROUPS)
def test_outputs_err_far_less_than_with_scales_fitted_to_the_weights(group: int) -> None:
    weight, x = weights(), correlated_inputs()
    plain = Int4.of(group).pack(*weight.shape, [weight])
    fitted = Int4.of(group).fit(weight, x.T @ x)
    assert output_error(fitted, weight, x) < 0.3 * output_error(plain, weight, x)
    other = correlated_inputs()[::-1]  # not in the order in which they were summed
    assert output_error(fitted, weight, other) < 0.3 * output_error(plain, weight, other)
    assert fitted.nbytes == plain.nbytes


@pytest.mark.parametrize(
    "form", ["int4dq", "int4dq:128", "fp4", "fp4:64", "fp4:group=32,scales=m2", "fp4:scales=m1"]
)
def test_formats_with_two_levels_of_scales_are_fitted_too(form: str) -> None:
    made, weight, x = make("format", form), weights(), correlated_inputs()
    weight[3] *= 1e-20  # a row has a unit of its own
    plain = made.pack(*weight.shape, [weight])
    fitted = made.fit(weight, x.T @ x)
    assert output_error(fitted, weight, x) < 0.4 * output_error(plain, weight, x)
    assert fitted.nbytes == plain.nbytes
    scales = fitted.arrays["group_scales"].view(np.int8).astype(np.float32)
    if "scales" in form:
        assert (np.log2(scales[scales != 0]) % 1 == 0).all()
    assert (made.fit(weight * 0, x.T @ x).rows(np.arange(37, dtype=np.int32)) == 0).all()
    with pytest.raises(ModelError, match="too large for the scale of its row"):
        made.fit(weight * 1e31, x.T @ x)
    with pytest.raises(ModelError, match="not finite on the calibration text"):
        made.fit(weight, np.full((256, 256), np.nan, np.float32))


@pytest.mark.skipif(core is None, reason="the native core was not built")
@pytest.mark.parametrize("name", ["int4dq", "fp4"])
def test_what_is_fitted_is_the_same_in_both_layouts(name: str) -> None:
    weight, x, ids = weights(), correlated_inputs(), np.arange(37, dtype=np.int32)
    rows, panels = (make("format", name).fit(weight, x.T @ x, each) for each in (ROWS, PANELS))
    assert (rows.rows(ids) == panels.rows(ids)).all()


def test_inputs_that_do_not_depend_on_each_other_are_rounded_to_the_nearest() -> None:
    weight = weights()
    codes, scales = calibrated_codes(weight, np.eye(256, dtype=np.float32), 64)
    wide = np.repeat(scales.astype(np.float32), 64, axis=1)
    assert (codes == np.clip(np.rint(weight / wide), -8, 7) + 8).all()


def test_the_factor_is_that_of_the_inverse() -> None:
    x = correlated_inputs(64)
    moments = x.T @ x
    damped = moments + DAMPING * np.diag(moments).mean() * np.eye(64, dtype=np.float32)
    factor = factor_of_inverse(moments).astype(np.float64)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(64), atol=1e-4)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, x = weights(), correlated_inputs()
    x[:, 64:192] = 0
    ids = np.arange(37, dtype=np.int32)
    some = Int4.of(64).fit(weight, x.T @ x).rows(ids) - weight
    none = Int4.of(64).fit(weight, np.zeros((256, 256), np.float32)).rows(ids) - weight
    for error in (some[:, 64:192], none):  # as near as rounding leaves it
        assert np.sqrt(np.square(error).mean()) < 0.12


def test_weights_of_zero_stay_zero() -> None:
    x = correlated_inputs(64)
    packed = Int4.of(32).fit(np.zeros((3, 64), np.float32), x.T @ x)
    assert (packed.rows(np.arange(3, dtype=np.int32)) == 0).all()


def test_what_no_scale_can_hold_is_refused() -> None:
    with pytest.raises(ModelError, match="too large for the fp16 scale"):
        Int4.of(64).fit(weights() * 1e6, np.eye(256, dtype=np.float32))
    with pytest.raises(ModelError, match="not finite on the calibration text"):
        Int4.of(64).fit(weights(), np.full((256, 256), np.nan, np.float32))
