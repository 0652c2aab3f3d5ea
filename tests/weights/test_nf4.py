"""NormalFloat: its levels, its codes, and products that are the meaning's to the bit."""

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
from ockham.weights import nf4
from ockham.weights.nf4 import DIVISORS, GROUPS, HALFWAY, LEVELS, Nf4, choose_codes, nearest
from tests.helpers import isas

# Appendix E of QLoRA (arXiv:2305.14314).
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip

native = pytest.mark.skipif(core is None, reason="the native core was not built")


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def of(group: int) -> Nf4:
    weight_format: Nf4 = make("format", f"nf4:{group}")
    return weight_format


def test_the_levels_are_the_published_ones_in_127ths() -> None:
    assert LEVELS.tolist() == np.rint(127 * np.array(PUBLISHED)).tolist()
    assert np.abs(LEVELS / 127 - PUBLISHED).max() < 0.5 / 127


def test_a_code_is_that_of_the_nearest_level() -> None:
    units = np.linspace(-140, 140, 2801, dtype=np.float32)
    distance = np.abs(units[:, None] - LEVELS)
    found = distance[np.arange(len(units)), nearest(units)]
    assert (found == distance.min(axis=1)).all()
    assert nearest(HALFWAY).tolist() == list(range(15))  # the lower of two


def test_scales_are_searched_for_the_smallest_error() -> None:
    groups = normal(200, 64)
    codes, scales = choose_codes(groups)
    chosen = np.square(LEVELS[codes] * scales.astype(np.float32)[:, None] - groups).sum(-1)
    most = np.abs(groups).max(-1, keepdims=True)
    for divisor in DIVISORS:
        wide = (most / np.float32(divisor)).astype(np.float16).astype(np.float32)
        other = LEVELS[nearest(groups / wide)] * wide
        assert (chosen <= np.square(other - groups).sum(-1) * 1.0001).all()


@pytest.mark.parametrize("group", GROUPS)
def test_normal_weights_err_less_than_in_as_many_evenly_spaced_levels(group: int) -> None:
    weight, ids = normal(256, 1024), np.arange(256, dtype=np.int32)

    def error(name: str) -> float:
        packed = make("format", f"{name}:{group}").pack(256, 1024, [weight])
        return float(np.square(packed.rows(ids) - weight).mean())

    assert error("nf4") < error("int4")


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("group", GROUPS)
def test_every_instruction_set_chooses_the_codes_of_numpy(group: int, isa: core.Isa) -> None:
    weight = normal(48, 384, 7)
    weight[3], weight[4, :32] = 0.0, 1e-40
    weight[5, :32] *= np.float32(1e-6)  # a subnormal fp16 scale
    weight[6] = np.random.default_rng(1).choice([-2.0, 2.0], 384)
    codes, scales = choose_codes(weight.reshape(48, -1, group))
    found, found_scales = np.empty(codes.size, np.uint8), np.empty(scales.size, np.uint16)
    core.quantise(core.ThreadPool(2), isa, "nf4", group, weight, found, found_scales)
    assert found.tobytes() == codes.tobytes()
    assert found_scales.tobytes() == scales.tobytes()


def test_numpy_packs_what_the_native_core_does(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(50, 128)
    found = of(32).encode(weight)
    monkeypatch.setattr(nf4, "core", None)
    for name, array in of(32).encode(weight).items():
        assert found[name].tobytes() == array.tobytes()


def random_values(outputs: int, inputs: int, group: int) -> Values:
    rng = np.random.default_rng(outputs + inputs)
    return {
        "codes": rng.integers(0, 16, (outputs, inputs)).astype(np.uint8),
        "scales": rng.uniform(-0.01, 0.01, (outputs, inputs // group)).astype(np.float16),
    }


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 128), (100, 384), (530, 1152)])
def test_products_are_what_the_meaning_says_in_any_batch(
    outputs: int, inputs: int, group: int, isa: core.Isa
) -> None:
    from ockham.kernels.cpu_layout import PANELS

    values = random_values(-(-outputs // 16) * 16, inputs, group)
    matrix = PANELS.blank(of(group), outputs, inputs)
    matrix.fill(0, values)
    own = {name: array[:outputs] for name, array in values.items()}
    ids = np.array([outputs - 1, 0], np.int32)
    assert matrix.rows(ids).tobytes() == of(group).decode(own, inputs)[ids].tobytes()
    x, pool = normal(33, inputs, 1), core.ThreadPool(2)
    x[2, 5:9] = [1e30, -1e30, 5e29, 3.0]
    expected = np.ascontiguousarray(of(group).matmul(own, x))
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
def test_no_sum_saturates(isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    for code in (0, 15):
        matrix = PANELS.blank(of(128), 16, 256)
        codes, scales = np.full((16, 256), code, np.uint8), np.ones((16, 2), np.float16)
        matrix.fill(0, {"codes": codes, "scales": scales})
        for sign in (1, -1):
            x = np.full((9, 256), np.float32(127 * sign))
            found = np.asarray(core.linear(core.ThreadPool(1), isa, matrix.native, x))
            assert (found == np.float32(127 * sign) * LEVELS[code] * 256).all()


def test_shapes_groups_and_weights_that_it_cannot_have_are_refused() -> None:
    with pytest.raises(ModelError, match="96 inputs cannot be cut into groups of 64"):
        of(64).pack(16, 96, [normal(16, 96)])
    with pytest.raises(ConfigError, match="not of 48"):
        of(48)
    weight = normal(16, 32)
    weight[3, 3] = 1e7
    with pytest.raises(ModelError, match="too large for the fp16 scale"):
        of(32).pack(16, 32, [weight])


def test_embeddings_heads_and_routers_keep_eight_bits() -> None:
    assert {Nf4().beside(role, 64) for role in ("embedding", "head", "router")} == {"int8"}
    assert {Nf4().beside(role, 64) for role in ("qkv", "gate_up", "down")} == {None}


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_a_model_is_loaded_in_it(backend: str) -> None:
    model = load_model(EngineConfig(model="lab", quantization="nf4:32", backend=backend))
    assert set(model.weight_format.split("+")) == {"nf4", "int8"}


def test_a_model_is_converted_to_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["convert", "lab", str(out), "--quantization", "nf4", "--group-size", "32"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    packed = load_model(EngineConfig(model="lab", quantization="nf4:32"))
    assert load_model(EngineConfig(model=str(out))).numerics_id == packed.numerics_id
