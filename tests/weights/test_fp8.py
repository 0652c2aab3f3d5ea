"""8-bit floats: what codes mean, products with the bits of fp32, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import BlockRows
from ockham.core.registry import make
from ockham.core.seams import Layout, Linear
from ockham.kernels.backends import find_layout_of
from ockham.kernels.layouts import ROWS
from ockham.kernels.native import core
from ockham.weights.fp8 import Fp8
from ockham.weights.fp32 import Fp32
from tests.helpers import isas

native = pytest.mark.skipif(core is None, reason="the native core was not built")
GROUPS = (0, 64, 128)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def of(group: int) -> Fp8:
    weight_format: Fp8 = make("format", f"fp8:{group}")
    return weight_format


def adopted(outputs: int, inputs: int, group: int, layout: Layout = ROWS) -> Linear:
    """Random codes, all but NaN, with random scales of either sign."""
    random = np.random.default_rng(outputs + inputs)
    codes = random.integers(0, 256, (outputs, inputs)).astype(np.uint8)
    codes[codes & 127 == 127] = 126
    shape = (outputs, -(-inputs // group) if group else 1)
    scales = random.normal(0, 1e-3, shape).astype(np.float32)
    half = outputs // 2
    rows = [BlockRows(codes[:half], scales[:half]), BlockRows(codes[half:], scales[half:])]
    return of(group).adopt(outputs, inputs, [each for each in rows if len(each)], layout)


def test_codes_are_those_of_e4m3() -> None:
    codes = np.array([[0, 1, 7, 8, 0x38, 0x7E, 0x80, 0x81, 0xB8, 0xFE]], np.uint8)
    packed = of(0).adopt(1, 10, [BlockRows(codes, np.ones((1, 1), np.float32))])
    meant = [0, 2**-9, 7 * 2**-9, 2**-6, 1, 448, -0.0, -(2**-9), -1, -448]
    assert packed.rows(np.zeros(1, np.int32)).tolist() == [meant]


@native
@pytest.mark.parametrize("scale", [1.0, 2.0**-130, -3e-5])
def test_panels_hold_every_code(scale: float) -> None:
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[codes & 127 != 127][None]
    rows = BlockRows(codes, np.full((1, 1), scale, np.float32))
    packed = of(0).adopt(1, codes.shape[1], [rows], find_layout_of("cpu"))
    meant = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)
    assert packed.rows(np.zeros(1, np.int32)).tobytes() == meant.tobytes()


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(1, 4), (16, 63), (37, 130), (333, 257), (48, 9001)]
)
def test_products_have_the_bits_of_fp32(
    outputs: int, inputs: int, group: int, isa: core.Isa
) -> None:
    layout, pool = find_layout_of("cpu"), core.ThreadPool(2)
    packed = adopted(outputs, inputs, group, layout)
    wide = adopted(outputs, inputs, group).rows(np.arange(outputs, dtype=np.int32))
    beside = Fp32().pack(outputs, inputs, [wide], layout)
    x, bias = normal(40, inputs, 1), normal(1, outputs, 2)[0]
    for rows in (1, 2, 3, 9, 40):
        got = core.linear(pool, isa, packed.native, x[:rows], bias)
        meant = core.linear(pool, isa, beside.native, x[:rows], bias)
        assert np.asarray(got).tobytes() == np.asarray(meant).tobytes(), rows


@pytest.mark.parametrize("group", GROUPS)
def test_the_plain_twin_multiplies_the_decoded_weights(group: int) -> None:
    packed, x = adopted(300, 200, group), normal(5, 200, 1)
    wide = packed.rows(np.arange(300, dtype=np.int32)).astype(np.float64)
    assert np.allclose(packed.matmul(x), x.astype(np.float64) @ wide.T, atol=1e-4)


@pytest.mark.parametrize("group", GROUPS)
def test_rounding_errs_by_a_sixteenth_at_most(group: int) -> None:
    weight = normal(40, 300) * np.exp(normal(40, 1, 1))
    weight[3] = 0
    packed = of(group).pack(40, 300, [weight])
    found = packed.rows(np.arange(40, dtype=np.int32))
    large = np.abs(weight) > np.abs(weight).max(axis=1, keepdims=True) * 2.0**-14
    assert (np.abs(found - weight)[large] <= np.abs(weight)[large] * 0.0626).all()
    assert (found[3] == 0).all()
    assert np.isclose(np.abs(found).max(), np.abs(weight).max(), rtol=1e-6)


def test_takes_a_byte_a_weight_and_four_for_a_scale() -> None:
    assert of(0).pack(16, 512, [normal(16, 512)]).nbytes == 16 * (512 + 4)
    assert of(128).pack(16, 512, [normal(16, 512)]).nbytes == 16 * (512 + 4 * 4)


def test_what_it_cannot_hold_is_refused() -> None:
    codes, ones = np.zeros((2, 8), np.uint8), np.ones((2, 1), np.float32)
    spoilt = codes.copy()
    spoilt[1, 3] = 0xFF
    with pytest.raises(ModelError, match="NaN stands in rows 0 to 1"):
        of(0).adopt(2, 8, [BlockRows(spoilt, ones)])
    for scale in (np.nan, np.inf, 2.0**119):
        with pytest.raises(ModelError, match="a scale is NaN, infinite or too large"):
            of(0).adopt(2, 8, [BlockRows(codes, ones * np.float32(scale))])
    with pytest.raises(ModelError, match="only 2 of 3 rows"):
        of(0).adopt(3, 8, [BlockRows(codes, ones)])
    with pytest.raises(ModelError, match="a weight is too large"):
        of(0).pack(1, 2, [np.full((1, 2), 3.4e38, np.float32)])
    with pytest.raises(ConfigError, match="multiple of 4 inputs"):
        of(6)
    with pytest.raises(ValueError, match="its group is 6"):
        Fp8.of_group(6)
