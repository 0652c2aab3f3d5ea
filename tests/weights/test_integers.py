"""The integer formats: what they store, what they compute, what they refuse."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import find
from ockham.kernels.backends import find_layout_of
from ockham.kernels.layouts import ROWS
from ockham.weights import int4, int8, q5_0
from ockham.weights.by_rows import ROWS_AT_ONCE, quantise
from ockham.weights.int4 import Int4
from ockham.weights.int8 import Int8, grouped, hadamard
from ockham.weights.q5_0 import Q5_0
from ockham.weights.scales import DIVISORS, choose_scales


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


FORMATS = [Int8(), Int4.of(32), Int4.of(64), Int4.of(128), Q5_0()]
LAYOUTS = {layout.name: layout for layout in (ROWS, find_layout_of("auto"))}.values()
ERRORS = {"int8": 0.007, "q5_0": 0.05, "int4": 0.11}


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_integer_formats_are_registered_as_approximate(name: str) -> None:
    technique = find("format", name)
    assert not technique.exact
    assert technique.summary


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f"{f.name}{vars(f)}")
def test_a_layout_says_beforehand_what_packing_takes(weight_format: Int8 | Int4) -> None:
    for layout in LAYOUTS:
        packed = weight_format.pack(50, 128, iter([matrix(50, 128)]), layout)
        held = sum(array.nbytes for array in packed.arrays.values())
        assert packed.nbytes == layout.nbytes(weight_format, 50, 128) == held


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f"{f.name}{vars(f)}")
def test_the_stored_rows_are_near_the_weights(weight_format: Int8 | Int4) -> None:
    weight = matrix(70, 256)
    packed = weight_format.pack(70, 256, iter([weight]))
    rows = packed.rows(np.arange(70, dtype=np.int32))
    error = np.sqrt(np.square(rows - weight).mean())
    assert error < ERRORS[weight_format.name]
    # And the product is that of the stored rows, but for the rounding of the inputs.
    x = matrix(5, 256, 1)
    assert np.abs(packed.matmul(x) - x @ rows.T).std() < 0.01 * (x @ rows.T).std()


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f"{f.name}{vars(f)}")
def test_packing_does_not_depend_on_the_blocks(weight_format: Int8 | Int4) -> None:
    rows = ROWS_AT_ONCE + 75
    weight = matrix(rows, 128)
    cuts = [0, 1, 15, 16, 33, 500, 512, 540, rows]
    for layout in LAYOUTS:
        whole = weight_format.pack(rows, 128, iter([weight]), layout)
        blocks = [weight[a:b] for a, b in itertools.pairwise(cuts)]
        parts = weight_format.pack(rows, 128, iter(blocks), layout)
        for name, array in whole.arrays.items():
            assert parts.arrays[name].tobytes() == array.tobytes()


@pytest.mark.skipif(int4.core is None, reason="the native core was not built")
@pytest.mark.parametrize("module", [int4, int8, q5_0])
def test_numpy_packs_the_same_bits_as_the_native_core(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = matrix(100, 256)
    weight[3] = 0.0
    weight[4, :32] *= np.float32(1e-6)
    weight[5] = np.random.default_rng(1).choice([-2.0, 2.0], 256)  # equal extremes of both signs
    weight_format = {int4: Int4.of(32), int8: Int8(), q5_0: Q5_0()}[module]  # type: ignore[index]
    native = weight_format.pack(100, 256, iter([weight]))
    monkeypatch.setattr(module, "core", None)
    plain = weight_format.pack(100, 256, iter([weight]))
    for name, array in plain.arrays.items():
        assert native.arrays[name].tobytes() == array.tobytes()


def test_scales_are_searched_for_the_smallest_error() -> None:
    values = matrix(200, 64)
    codes, scale = choose_scales(values)
    stored = (codes.astype(np.float32) - 8) * scale.astype(np.float32)[:, None]
    chosen = np.square(stored - values).sum(-1)
    extreme = np.take_along_axis(values, np.abs(values).argmax(-1)[:, None], -1)
    for divisor in DIVISORS[8]:
        wide = (extreme / np.float32(-divisor)).astype(np.float16).astype(np.float32)
        other = np.clip(np.rint(values / wide), -8, 7) * wide
        assert (chosen <= np.square(other - values).sum(-1) * 1.0001).all()


def test_bfloat16_blocks_are_packed_as_their_values() -> None:
    weight = matrix(20, 64).astype(ml_dtypes.bfloat16)
    for weight_format in (Int8(), Int4.of(32)):
        narrow = weight_format.pack(20, 64, iter([weight]))
        wide = weight_format.pack(20, 64, iter([weight.astype(np.float32)]))
        assert narrow.arrays["codes"].tobytes() == wide.arrays["codes"].tobytes()


def test_zero_points_move_the_codes() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (16, 32), np.uint8)
    zero = np.arange(16, dtype=np.uint8)[:, None]
    scales = np.full((16, 1), 0.5, np.float16)
    rows = Int4.of(32).decode({"codes": codes, "scales": scales, "zeros": zero}, 32)
    assert (rows == (codes.astype(np.float32) - zero) * 0.5).all()


def test_inputs_are_quantised_to_even_and_extremes_stay_in_range() -> None:
    values, scale = quantise(np.float32([[127.0, 0.5, 1.5, -2.5, -127.0]]))
    assert values.tolist() == [[127.0, 0.0, 2.0, -2.0, -127.0]]
    assert scale.tolist() == [[1.0]]
    values, scale = quantise(np.float32([[1e-38, 0.0], [np.nan, 1.0], [np.inf, 1.0]]))
    assert not values.any()
    assert scale[0] == 0
    assert np.isnan(scale[1:]).all()


@pytest.mark.parametrize("weight_format", FORMATS[:2], ids=["int8", "int4"])
def test_bad_weights_are_refused_with_a_sentence(weight_format: Int8 | Int4) -> None:
    broken = matrix(20, 64)
    broken[17, 3] = np.nan
    with pytest.raises(ModelError, match="NaN or infinity stands in rows 10 to 19"):
        weight_format.pack(20, 64, iter([broken[:10], broken[10:]]))
    with pytest.raises(ModelError, match="only 10 of 20 rows"):
        weight_format.pack(20, 64, iter([broken[:10]]))
    with pytest.raises(ModelError, match="do not fit at row 0"):
        weight_format.pack(5, 64, iter([broken[:10]]))
    with pytest.raises(ModelError, match="do not fit at row 0"):
        weight_format.pack(20, 32, iter([broken[:10]]))


def test_shapes_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ModelError, match="96 inputs cannot be cut into groups of 64"):
        Int4.of(64).pack(16, 96, iter([matrix(16, 96)]))
    with pytest.raises(ConfigError, match="not of 48"):
        Int4.of(48)


def test_weights_too_large_for_an_fp16_scale_are_refused() -> None:
    weight = matrix(16, 32)
    weight[3, 3] = 1e6
    with pytest.raises(ModelError, match="too large for the fp16 scale"):
        Int4.of(32).pack(16, 32, iter([weight]))
    with pytest.raises(ModelError, match="too large for the fp16 scale"):
        Int8().pack(16, 32, iter([weight]))


def test_the_rotation_is_its_own_inverse_and_keeps_products() -> None:
    x, weight = matrix(5, 128), matrix(7, 128, 1)
    turned_x, turned = hadamard(grouped(x)), hadamard(grouped(weight))
    assert np.allclose(hadamard(turned_x).reshape(5, 128), x, atol=1e-6)
    product = np.einsum("mgk,ngk->mn", turned_x, turned)
    assert np.allclose(product, x @ weight.T, atol=1e-4)


def test_a_huge_activation_costs_the_other_inputs_of_its_group_little() -> None:
    weight, x = matrix(64, 256), matrix(20, 256, 1)
    x[:, 70] = 300.0
    weight[:, 70] *= 0.01
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    rotated = Int8().pack(64, 256, iter([weight]))
    codes, scale = quantise(weight)
    by_output = Int8(0).matmul({"codes": codes.astype(np.int8), "scales": scale}, x)
    error = np.square(rotated.matmul(x) - exact).mean()
    assert error < np.square(by_output - exact).mean() / 5


@pytest.mark.parametrize("inputs", [1, 63, 64, 65, 200])
def test_int8_takes_any_number_of_inputs(inputs: int) -> None:
    weight, x = matrix(20, inputs), matrix(3, inputs, 1)
    packed = Int8().pack(20, inputs, iter([weight]))
    assert packed.rows(np.arange(20, dtype=np.int32)).shape == (20, inputs)
    assert np.allclose(packed.rows(np.arange(20, dtype=np.int32)), weight, atol=0.03)
    assert np.allclose(packed.matmul(x), x @ weight.T, atol=0.03 * inputs**0.5)


def test_int4_leaves_what_four_bits_would_spoil_to_other_formats() -> None:
    mixed, alone = Int4(), Int4.of(64)
    assert {mixed.beside(role, 2048) for role in ("embedding", "head", "router")} == {"int8"}
    assert {alone.beside(role, 2048) for role in ("embedding", "head", "router")} == {"int8"}
    assert {mixed.beside(role, 2048) for role in ("qkv", "attention_output", "down")} == {"q5_0"}
    assert mixed.beside("gate_up", 2048) is None
    assert mixed.beside("gate_up", 576) == "q5_0"  # a narrow model
    assert mixed.beside("down", 1080) == "int8"  # no multiple of 32
    assert all(alone.beside(role, 576) is None for role in ("qkv", "gate_up", "down"))
