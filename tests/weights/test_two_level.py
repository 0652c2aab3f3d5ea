"""Two levels of scales: what is stored, and products that are the meaning's to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import make
from ockham.core.seams import Values
from ockham.kernels.native import core
from ockham.model.loading import load_model
from ockham.weights import int4dq
from ockham.weights.fp4 import MAGNITUDES, nearest_codes
from ockham.weights.two_level import GROUPS, MOST, SPAN, TwoLevel
from tests.helpers import isas

NAMES = ("fp4", "int4dq")

native = pytest.mark.skipif(core is None, reason="the native core was not built")


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def of(name: str, group: int) -> TwoLevel:
    weight_format: TwoLevel = make("format", f"{name}:{group}")
    return weight_format


def random_values(outputs: int, inputs: int, group: int) -> Values:
    rng = np.random.default_rng(outputs + inputs)
    return {
        "codes": rng.integers(0, 16, (outputs, inputs)).astype(np.uint8),
        "group_scales": rng.integers(-MOST, MOST + 1, (outputs, inputs // group)).astype(np.int8),
        "scale": rng.uniform(1e-4, 2e-4, (outputs, 1)).astype(np.float32),
    }


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_largest_scale_of_a_row_is_127_of_its_units(name: str, group: int) -> None:
    weight = normal(40, 384) * np.exp(normal(40, 1, 1))
    values = of(name, group).encode(weight)
    assert (np.abs(values["group_scales"].astype(int)).max(axis=1) == MOST).all()
    decoded = of(name, group).decode(values, 384)
    assert np.square(decoded - weight).mean() < 0.02 * np.square(weight).mean()


@pytest.mark.parametrize("group", GROUPS)
def test_integer_scales_lose_little_beside_scales_in_fp16(group: int) -> None:
    weight, ids = normal(256, 1024), np.arange(256, dtype=np.int32)

    def error(name: str) -> float:
        packed = make("format", f"{name}:{group}").pack(256, 1024, [weight])
        return float(np.square(packed.rows(ids) - weight).mean())

    assert error("int4dq") < 1.01 * error("int4")
    fields = {name: make("format", f"{name}:{group}").fields(1024) for name in ("int4dq", "int4")}
    bits = {
        name: sum(field.bits * field.shape[0] for field in found.values())
        for name, found in fields.items()
    }
    assert bits["int4"] - bits["int4dq"] == 8 * 1024 // group - 32


def test_numpy_packs_what_the_native_core_does(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(50, 128) * np.float32(1e-4)
    weight[3], weight[4, :32] = 0.0, 1e-40
    found = of("int4dq", 32).encode(weight)
    monkeypatch.setattr(int4dq, "core", None)
    for name, array in of("int4dq", 32).encode(weight).items():
        assert found[name].tobytes() == array.tobytes()


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 128), (100, 384), (530, 1152)])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_what_the_meaning_says_in_any_batch(
    name: str, outputs: int, inputs: int, group: int, isa: core.Isa
) -> None:
    from ockham.kernels.cpu_layout import PANELS

    weight_format = of(name, group)
    values = random_values(-(-outputs // 16) * 16, inputs, group)
    matrix = PANELS.blank(weight_format, outputs, inputs)
    matrix.fill(0, values)
    own = {field: array[:outputs] for field, array in values.items()}
    ids = np.array([outputs - 1, 0], np.int32)
    assert matrix.rows(ids).tobytes() == weight_format.decode(own, inputs)[ids].tobytes()
    x, pool = normal(33, inputs, 1), core.ThreadPool(2)
    x[2, 5:9] = [1e30, -1e30, 5e29, 3.0]
    x[4] = 0.0
    expected = np.ascontiguousarray(weight_format.matmul(own, x))
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
@pytest.mark.parametrize("name", NAMES)
def test_no_sum_wraps(name: str, isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    weight_format = of(name, 32)
    for code in (0, 7, 15):
        for group_scale in (MOST, -MOST):
            matrix = PANELS.blank(weight_format, 16, 2 * SPAN)
            values: Values = {
                "codes": np.full((16, 2 * SPAN), code, np.uint8),
                "group_scales": np.full((16, 2 * SPAN // 32), group_scale, np.int8),
                "scale": np.ones((16, 1), np.float32),
            }
            matrix.fill(0, values)
            for pattern in ([1, 1, 1, 1], [-1, -1, -1, -1], [1, 1, -1, -1], [1, 0, -1, 0]):
                x = np.tile(np.float32(127 * np.array(pattern)), (9, 2 * SPAN // 4))
                found = np.asarray(core.linear(core.ThreadPool(1), isa, matrix.native, x))
                whole = 127 * sum(pattern) * float(weight_format.levels[code]) * group_scale
                assert (found == np.float32(whole * 2 * SPAN / 4)).all()


@native
@pytest.mark.parametrize("isa", isas.params())
def test_what_is_not_finite_stays_so(isa: core.Isa) -> None:
    matrix = of("int4dq", 64).pack(20, 320, [normal(20, 320)])
    from ockham.kernels.cpu_layout import in_panels

    x = normal(3, 320, 1)
    x[0, 300], x[1, 5] = np.inf, np.nan
    found = np.asarray(core.linear(core.ThreadPool(1), isa, in_panels(matrix).native, x))
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_groups_and_weights_that_it_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="96 inputs cannot be cut into groups of 64"):
        of(name, 64).pack(16, 96, [normal(16, 96)])
    with pytest.raises(ConfigError, match=f"{name} has groups .* not of 48"):
        of(name, 48)
    weight = normal(16, 32)
    weight[3, 3] = 1e31
    with pytest.raises(ModelError, match="too large for the scale of its row"):
        of(name, 32).pack(16, 32, [weight])


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_loaded_in_it(name: str, backend: str) -> None:
    model = load_model(EngineConfig(model="lab", quantization=f"{name}:32", backend=backend))
    assert set(model.weight_format.split("+")) == {name, "int8"}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_converted_to_it(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["convert", "lab", str(out), "--quantization", name, "--group-size", "64"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    packed = load_model(EngineConfig(model="lab", quantization=f"{name}:64"))
    assert load_model(EngineConfig(model=str(out))).numerics_id == packed.numerics_id


def test_weights_of_fp4_take_the_nearest_level_and_halfway_the_lower_one() -> None:
    rising = np.array([-m for m in MAGNITUDES[:0:-1]] + list(MAGNITUDES), np.float32)
    codes = np.array([*range(15, 8, -1), *range(8)], np.uint8)
    halfway = (rising[1:] + rising[:-1]) / 2
    sides = [np.nextafter(halfway, np.float32(side)) for side in (-99, 99)]
    special = np.array([0, -0.0, 1e-45, -1e-45, 13, -13, np.inf, -np.inf], np.float32)
    units = np.concatenate([halfway, *sides, special, 6 * normal(1, 4000)[0]])
    wanted = codes[np.searchsorted(halfway, units, side="left")]
    np.testing.assert_array_equal(nearest_codes(units), wanted)
