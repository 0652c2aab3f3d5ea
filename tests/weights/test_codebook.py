"""Codebooks by row: levels, what stands apart, and products that are the meaning's to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.core.registry import make
from ockham.core.seams import Values
from ockham.kernels.native import core
from ockham.model.loading import load_model
from ockham.weights.codebook import APART, MOST_APART, MOST_LEVEL, Codebook, fitted_levels, nearest
from tests.helpers import isas

NAMES = ("codebook3", "codebook4")

native = pytest.mark.skipif(core is None, reason="the native core was not built")


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def of(name: str) -> Codebook:
    weight_format: Codebook = make("format", name)
    return weight_format


def random_values(name: str, outputs: int, inputs: int) -> Values:
    rng = np.random.default_rng(outputs + inputs)
    bits, apart = of(name).bits, -(-inputs // APART)
    columns = np.stack([rng.choice(inputs, apart, replace=False) for _ in range(outputs)])
    return {
        "codes": rng.integers(0, 1 << bits, (outputs, inputs)).astype(np.uint8),
        "levels": rng.integers(-MOST_LEVEL, MOST_LEVEL + 1, (outputs, 1 << bits)).astype(np.int8),
        "scale": rng.uniform(1e-3, 2e-3, (outputs, 1)).astype(np.float32),
        "columns": np.sort(columns, axis=1).astype(np.uint16),
        "extras": rng.integers(-MOST_APART, MOST_APART + 1, (outputs, apart)).astype(np.int16),
    }


def squared(rows: np.ndarray, levels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    chosen = np.take_along_axis(levels, nearest(rows, levels).astype(np.int64), axis=1)
    found: np.ndarray = (weight * np.square(rows - chosen)).sum(axis=1)
    return found


def test_levels_are_a_fixed_point_of_lloyds_algorithm_and_follow_the_weights() -> None:
    rows = normal(20, 500)
    even = np.ones_like(rows)
    levels = fitted_levels(rows, even, 8)
    assert (np.diff(levels) >= 0).all()
    codes = nearest(rows, levels)
    for row, code, own in zip(rows, codes, levels, strict=True):
        for level in range(8):
            if (code == level).any():  # near the mean of what is nearest to it
                assert abs(row[code == level].mean() - own[level]) < 0.05
    # An even grid over the same range errs more, and so do levels for other weights.
    grid = np.linspace(rows.min(axis=1), rows.max(axis=1), 8, axis=1).astype(np.float32)
    assert (squared(rows, levels, even) < squared(rows, grid, even)).all()
    weight = np.where(rows > 0.5, 100, 1).astype(np.float32)
    weighted = fitted_levels(rows, weight, 8)
    assert squared(rows, weighted, weight).sum() < 0.5 * squared(rows, levels, weight).sum()


def test_few_values_have_levels_of_their_own() -> None:
    rows = np.tile(np.array([-2.0, 0.0, 0.5, 7.0], np.float32), (3, 32))
    levels = fitted_levels(rows, np.ones_like(rows), 8)
    assert squared(rows, levels, np.ones_like(rows)).max() < 1e-9
    assert np.isfinite(
        fitted_levels(np.zeros((2, 64), np.float32), np.ones((2, 64), np.float32), 8)
    ).all()


@pytest.mark.parametrize("name", NAMES)
def test_huge_weights_cost_the_others_no_precision(name: str) -> None:
    weight = normal(32, 448)
    plain = of(name).decode(of(name).encode(weight), 448) - weight
    weight[:, 100], weight[:, 331] = 40.0, -25.0  # two of the three that stand apart
    found = of(name).decode(of(name).encode(weight), 448) - weight
    assert np.square(found).mean() < 1.25 * np.square(plain).mean()
    assert np.abs(found[:, [100, 331]]).max() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_fitting_serves_the_inputs_that_are_large_on_the_text(name: str) -> None:
    weight, size = normal(48, 256), np.exp(2 * normal(1, 256, 2))
    x = normal(500, 256, 1) * size

    def error(packed: object) -> float:
        rows = packed.rows(np.arange(48, dtype=np.int32))  # type: ignore[attr-defined]
        return float(np.square(x @ (rows - weight).T).sum())

    plain, fitted = of(name).pack(48, 256, [weight]), of(name).fit(weight, x.T @ x)
    assert error(fitted) < 0.5 * error(plain)
    assert fitted.nbytes == plain.nbytes
    nothing = of(name).fit(weight, np.zeros((256, 256), np.float32))
    ids = np.arange(48, dtype=np.int32)
    assert np.array_equal(nothing.rows(ids), plain.rows(ids))
    with pytest.raises(ModelError, match="not finite on the calibration text"):
        of(name).fit(weight, np.full((256, 256), np.nan, np.float32))


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 64), (100, 448), (530, 1152)])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_what_the_meaning_says_in_any_batch(
    name: str, outputs: int, inputs: int, isa: core.Isa
) -> None:
    from ockham.kernels.cpu_layout import PANELS

    weight_format = of(name)
    values = random_values(name, -(-outputs // 16) * 16, inputs)
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
def test_no_sum_saturates(name: str, isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    for level in (MOST_LEVEL, -MOST_LEVEL):
        values = random_values(name, 16, 256)
        values["levels"][:] = level
        values["extras"][:] = 0
        values["scale"][:] = 1
        matrix = PANELS.blank(of(name), 16, 256)
        matrix.fill(0, values)
        for sign in (1, -1):
            x = np.full((9, 256), np.float32(127 * sign))
            found = np.asarray(core.linear(core.ThreadPool(1), isa, matrix.native, x))
            assert (found == np.float32(127 * sign * level * 256)).all()


@native
@pytest.mark.parametrize("isa", isas.params())
def test_a_column_that_there_is_not_reads_no_memory_beyond_the_inputs(isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    values = random_values("codebook4", 16, 64)
    x, found = normal(3, 64, 1), []
    for column in (0, 65535):
        values["columns"][:] = column
        matrix = PANELS.blank(of("codebook4"), 16, 64)
        matrix.fill(0, values)
        found.append(np.asarray(core.linear(core.ThreadPool(1), isa, matrix.native, x)))
        found.append(matrix.rows(np.arange(16, dtype=np.int32)))
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[3])


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_weights_that_it_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} needs a multiple of 64 inputs, .* not 96"):
        of(name).pack(16, 96, [normal(16, 96)])
    weight = normal(16, 64)
    weight[3, 3] = 1e31
    with pytest.raises(ModelError, match="too large for the scale of its row"):
        of(name).pack(16, 64, [weight])


def test_embeddings_heads_and_what_has_no_whole_units_keep_eight_bits() -> None:
    assert {of("codebook4").beside(role, 64) for role in ("embedding", "head", "router")} == {
        "int8"
    }
    assert [of("codebook4").beside("down", inputs) for inputs in (64, 96)] == [None, "int8"]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_loaded_in_it(name: str, backend: str) -> None:
    model = load_model(EngineConfig(model="lab", quantization=name, backend=backend))
    assert set(model.weight_format.split("+")) == {name, "int8"}


def test_a_model_is_fitted_to_a_text(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(Path(__file__).read_text()[:4000])
    args = ["convert", "lab", str(out), "--quantization", "codebook4", "--calibration", str(text)]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    fitted = load_model(EngineConfig(model=str(out)))
    plain = load_model(EngineConfig(model="lab", quantization="codebook4"))
    assert fitted.weight_format == plain.weight_format
    assert fitted.numerics_id != plain.numerics_id
