"""Ternary weights: what is stored, and products that are the meaning's to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Values
from ockham.kernels.native import core
from ockham.model.loading import load_model
from ockham.weights.ternary import Ternary, TernaryOptions
from tests.helpers import isas

native = pytest.mark.skipif(core is None, reason="the native core was not built")


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def random_values(outputs: int, inputs: int) -> Values:
    rng = np.random.default_rng(outputs + inputs)
    return {
        "codes": rng.integers(0, 3, (outputs, inputs)).astype(np.uint8),
        "scale": rng.uniform(-0.02, 0.02, (outputs, 1)).astype(np.float32),
    }


def test_weights_that_are_ternary_are_held_as_they_are() -> None:
    signs = np.random.default_rng(0).integers(-1, 2, (40, 96)).astype(np.float32)
    signs[3] = 0
    weight = signs * np.float32(0.0371)
    assert np.array_equal(Ternary().decode(Ternary().encode(weight), 96), weight)


def test_codes_are_ratios_to_the_mean_magnitude() -> None:
    weight = normal(30, 256)
    values = Ternary().encode(weight)
    ratio = weight / np.abs(weight).mean(axis=1, keepdims=True)
    assert np.array_equal(values["codes"], (ratio > 0.5).astype(int) - (ratio < -0.5) + 1)
    signs = values["codes"].astype(np.float64) - 1
    for factor in (0.98, 1.02):  # no other scale errs less
        own, other = (
            np.square(weight - signs * values["scale"].astype(np.float64) * f).sum()
            for f in (1, factor)
        )
        assert own < other


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("group", [128, -1])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (100, 416), (530, 1152)])
def test_products_are_what_the_meaning_says_in_any_batch(
    outputs: int, inputs: int, group: int, isa: core.Isa
) -> None:
    from ockham.kernels.cpu_layout import PANELS

    values = random_values(-(-outputs // 16) * 16, inputs)
    ternary = Ternary(TernaryOptions(group))
    matrix = PANELS.blank(ternary, outputs, inputs)
    matrix.fill(0, values)
    own = {field: array[:outputs] for field, array in values.items()}
    ids = np.array([outputs - 1, 0], np.int32)
    assert matrix.rows(ids).tobytes() == ternary.decode(own, inputs)[ids].tobytes()
    x, pool = normal(33, inputs, 1), core.ThreadPool(2)
    x[2, 5:9] = [1e30, -1e30, 5e29, 3.0]
    expected = np.ascontiguousarray(ternary.matmul(own, x))
    found = np.asarray(core.linear(pool, isa, matrix.native, x))
    if isa == core.Isa.PORTABLE:  # which rounds products before it adds them
        assert np.allclose(found, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    else:
        assert found.tobytes() == expected.tobytes()
    for rows in (1, 2, 3, 7, 13):
        part = np.asarray(core.linear(pool, isa, matrix.native, x[:rows]))
        assert part.tobytes() == found[:rows].tobytes()


@native
@pytest.mark.parametrize("isa", isas.params())
def test_no_sum_wraps(isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    for code in (0, 2):
        matrix = PANELS.blank(Ternary(), 16, 256)
        codes, scale = np.full((16, 256), code, np.uint8), np.ones((16, 1), np.float32)
        matrix.fill(0, {"codes": codes, "scale": scale})
        for sign in (1, -1):
            x = np.full((9, 256), np.float32(127 * sign))
            found = np.asarray(core.linear(core.ThreadPool(1), isa, matrix.native, x))
            assert (found == np.float32(127 * sign * (code - 1) * 256)).all()


def test_a_row_of_inputs_may_have_one_scale() -> None:
    """As ternary models are trained: small inputs then count for less beside large ones."""
    whole = Ternary(TernaryOptions(-1))
    x, values = np.full((1, 256), np.float32(0.1)), random_values(16, 256)
    x[0, 3] = 127.0
    rounded = np.zeros_like(x)
    rounded[0, 3] = 127.0
    assert np.allclose(whole.matmul(values, x), rounded @ whole.decode(values, 256).T)
    assert whole.activations == "int8 by row"
    assert Ternary.of_group(-1).whole
    with pytest.raises(ConfigError, match="by 128, or -1 for all of a row, not by 64"):
        TernaryOptions(64)


def test_shapes_and_weights_that_it_cannot_have_are_refused() -> None:
    with pytest.raises(ModelError, match="ternary needs a multiple of 32 inputs, not 48"):
        Ternary().pack(16, 48, [normal(16, 48)])
    with pytest.raises(ModelError, match="too large for the scale of its row"):
        Ternary().pack(16, 32, [np.full((16, 32), 1e31, np.float32)])


def test_embeddings_heads_and_what_has_no_whole_units_keep_eight_bits() -> None:
    assert {Ternary().beside(role, 64) for role in ("embedding", "head", "router")} == {"int8"}
    assert [Ternary().beside("down", inputs) for inputs in (64, 48)] == [None, "int8"]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_a_model_is_loaded_in_it(backend: str) -> None:
    model = load_model(EngineConfig(model="lab", quantization="ternary", backend=backend))
    assert set(model.weight_format.split("+")) == {"ternary", "int8"}
