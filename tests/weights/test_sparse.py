"""Sparse weights: any mask is held, products are the meaning's to the bit, zeros take a bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.core.registry import make
from ockham.kernels.native import core
from ockham.model.converting import convert
from ockham.model.loading import LoadedModel, load_model
from ockham.weights.bf16 import Bf16
from ockham.weights.sparse8 import Sparse8
from ockham.weights.sparse16 import Sparse16
from tests.helpers import isas
from tests.helpers.tiny import tiny_llama

native = pytest.mark.skipif(core is None, reason="the native core was not built")
SHAPES = [(1, 64), (100, 416), (33, 130), (50, 7), (530, 1152), (40, 8960)]
FORMATS = [Sparse8, Sparse16]


def pruned(outputs: int, inputs: int, share: float, seed: int = 0) -> np.ndarray:
    """Normal weights of which a share is zero, with a row of nothing else and one without any."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    weight[rng.random(weight.shape) < share] = 0
    if outputs > 20:
        weight[3] = 0
        weight[17] = rng.uniform(0.5, 1.0, inputs)
    return weight


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products_are_what_the_meaning_says_in_any_batch(
    outputs: int, inputs: int, share: float, isa: core.Isa
) -> None:
    from ockham.kernels.cpu_layout import PANELS

    weight = pruned(outputs, inputs, share)
    matrix = Sparse8().pack(outputs, inputs, [weight], PANELS)
    values = Sparse8().encode(weight)
    ids = np.arange(outputs, dtype=np.int32)
    assert matrix.rows(ids).tobytes() == Sparse8().decode(values, inputs).tobytes()
    x, pool = np.random.default_rng(1).standard_normal((33, inputs)), core.ThreadPool(2)
    x = x.astype(np.float32)
    x[2, 5:7] = [1e30, -1e30]
    expected = np.ascontiguousarray(Sparse8().matmul(values, x))
    found = np.asarray(core.linear(pool, isa, matrix.native, x))
    if isa == core.Isa.PORTABLE:  # which rounds products before it adds them
        assert np.allclose(found, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    else:
        assert found.tobytes() == expected.tobytes()
    for rows in (1, 2, 3, 7, 13, 26):
        part = np.asarray(core.linear(pool, isa, matrix.native, x[:rows]))
        assert part.tobytes() == found[:rows].tobytes()


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products_in_bf16_are_those_of_the_matrix_with_its_zeros(
    outputs: int, inputs: int, share: float, isa: core.Isa
) -> None:
    from ockham.kernels.cpu_layout import PANELS

    weight = pruned(outputs, inputs, share)
    sparse = Sparse16().pack(outputs, inputs, [weight], PANELS)
    dense = Bf16().pack(outputs, inputs, [weight], PANELS)
    ids = np.arange(outputs, dtype=np.int32)
    assert (
        sparse.rows(ids).tobytes() == Sparse16().decode(Sparse16().encode(weight), inputs).tobytes()
    )
    x = np.random.default_rng(1).standard_normal((33, inputs)).astype(np.float32)
    # Tiles of amx sum in another order.
    like = core.Isa.AVX512 if isa == getattr(core.Isa, "AMX", None) else isa
    for rows in (1, 2, 3, 7, 13, 33):
        found, expected = (
            np.asarray(core.linear(core.ThreadPool(2), each, matrix.native, x[:rows]))
            for each, matrix in ((isa, sparse), (like, dense))
        )
        assert found.tobytes() == expected.tobytes()


@native
@pytest.mark.parametrize("isa", isas.params())
def test_the_largest_codes_do_not_wrap(isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    for code in (-127, 127):
        matrix = PANELS.blank(Sparse8(), 16, 128)
        codes, scales = np.full((16, 128), code, np.int8), np.ones((16, 2), np.float16)
        matrix.fill(0, {"codes": codes, "scales": scales})
        for sign in (1, -1):
            x = np.full((9, 128), np.float32(127 * sign))
            found = np.asarray(core.linear(core.ThreadPool(1), isa, matrix.native, x))
            assert (found == np.float32(127 * sign * code * 128)).all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_zero_is_a_zero_and_has_no_sign(weight_format: type[Sparse8 | Sparse16]) -> None:
    weight = pruned(40, 200, 0.5)
    weight[5, ::3] = -0.0
    weight[9] *= 1000
    decoded = weight_format().decode(weight_format().encode(weight), 200)
    assert not decoded[weight == 0].any()
    assert not np.signbit(decoded[weight == 0]).any()
    kept = weight != 0
    limit = np.abs(weight).max() / 127 if weight_format is Sparse8 else np.abs(weight).max() / 128
    assert np.abs(decoded - weight)[kept].max() <= limit


def test_the_core_quantises_as_the_meaning_does() -> None:
    weight = pruned(64, 200, 0.5)
    weight[40] *= 1e-7
    own, plain = Sparse8().encode(weight), Sparse8()._encoded_rows(weight)
    assert {name: array.tobytes() for name, array in own.items()} == {
        name: array.tobytes() for name, array in plain.items()
    }


@native
@pytest.mark.parametrize(
    ("weight_format", "share", "bits"),
    [(Sparse8, 0.5, 5.28), (Sparse8, 0.0, 9.28), (Sparse16, 0.5, 9.04), (Sparse16, 0.8, 4.24)],
)
def test_a_zero_takes_one_bit(
    weight_format: type[Sparse8 | Sparse16], share: float, bits: float
) -> None:
    """Scales and places take 0.28 bits in 8 bits, and places 0.03 in 16. Codes of 0 are zeros."""
    from ockham.kernels.cpu_layout import PANELS

    weight = np.random.default_rng(0).standard_normal((512, 2048)).astype(np.float32)
    weight[:, : int(share * 2048)] = 0
    taken = weight_format().pack(512, 2048, [weight], PANELS).nbytes * 8 / weight.size
    assert taken == pytest.approx(bits, abs=0.06)
    most = PANELS.nbytes(weight_format(), 512, 2048) * 8 / weight.size
    assert taken <= most == pytest.approx(9.28 if weight_format is Sparse8 else 17.04, abs=0.03)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_room_is_known_before_packing(weight_format: type[Sparse8 | Sparse16]) -> None:
    weight = pruned(70, 300, 0.7)
    blocks = [weight[:13], weight[13:]]
    packed = weight_format().pack(70, 300, blocks)
    assert weight_format().sized(70, 300, blocks).group == packed.group > 0


@native
@pytest.mark.parametrize("name", ["sparse8", "sparse16"])
def test_room_that_is_too_small_or_too_large_is_refused(name: str) -> None:
    from ockham.kernels.cpu_layout import PANELS

    weight_format = make("format", name)
    for group in (7, 10_000):
        with pytest.raises(ModelError, match=rf"{name} of this shape takes 8 to .* not {group}"):
            PANELS.blank(weight_format.of_group(group), 20, 128)
    with pytest.raises(ValueError, match="its group is -1"):
        weight_format.of_group(-1)
    matrix = PANELS.blank(weight_format.of_group(8), 20, 128)
    rows = np.ones((32, 128), np.float32)
    with pytest.raises(ValueError, match="more weights are not zero than the matrix has room for"):
        matrix.fill(0, weight_format.encode(rows))


@native
@pytest.mark.parametrize("isa", isas.params())
@pytest.mark.parametrize("name", ["sparse8", "sparse16"])
def test_damaged_masks_and_places_lead_nowhere_else(name: str, isa: core.Isa) -> None:
    from ockham.kernels.cpu_layout import PANELS

    matrix = make("format", name).pack(70, 300, [pruned(70, 300, 0.7)], PANELS)
    for name_of, array in matrix.arrays.items():
        if name_of == "weight" or name == "sparse16":
            array.reshape(-1)[:] = 255
        else:
            array[:, -24:] = 255
    x = np.ones((30, 300), np.float32)
    assert np.asarray(core.linear(core.ThreadPool(2), isa, matrix.native, x)).shape == (30, 70)
    assert matrix.rows(np.array([69], np.int32)).shape == (1, 300)


def test_what_they_cannot_hold_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"too large for the fp16 scale of its group.*rows 0 to 15"
    ):
        Sparse8().pack(16, 32, [np.full((16, 32), 1e7, np.float32)])
    with pytest.raises(ModelError, match="a value that bfloat16 cannot hold"):
        Sparse16().pack(1, 2, [np.array([[1.0, 3.4e38]], np.float32)])
    with pytest.raises(ModelError, match="only 2 of 3 rows"):
        Sparse8().pack(3, 5, [np.zeros((2, 5), np.float32)])


def test_embeddings_heads_and_routers_are_left_to_dense_formats() -> None:
    for role in ("embedding", "head", "router"):
        assert (Sparse8().beside(role, 64), Sparse16().beside(role, 64)) == ("int8", "bf16")
    assert Sparse8().beside("down", 48) is None


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("name", ["sparse8", "sparse16"])
def test_a_pruned_model_is_converted_and_loaded_as_it_was_packed(
    tmp_path: Path, name: str, backend: str
) -> None:
    source = tiny_llama(tmp_path / "model", hidden_size=64, intermediate_size=96, head_dim=16)
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    for key, weights in tensors.items():
        if "_proj" in key:
            tensors[key] = pruned(*weights.shape, 0.6).astype(weights.dtype)
    save_file(tensors, file)
    config = EngineConfig(model=str(source), quantization=name, backend=backend)
    convert(config, tmp_path / "out", lambda line: None)

    def load(path: Path, quantization: str | None = None) -> LoadedModel:
        return load_model(EngineConfig(model=str(path), quantization=quantization, backend=backend))

    converted, packed = load(tmp_path / "out"), load(source, name)
    assert converted.numerics_id == packed.numerics_id
    assert converted.weight_bytes == packed.weight_bytes
    if backend == "cpu":
        dense = load(source, "int8" if name == "sparse8" else "bf16")
        assert packed.weight_bytes < dense.weight_bytes
