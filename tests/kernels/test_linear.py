"""The compiled products: exact whatever the batch, and what the plain twin says they are."""

from __future__ import annotations

import os
import sys
import time
from weakref import WeakKeyDictionary

import numpy as np
import pytest

from ockham.core.seams import Format, Linear, Values
from ockham.kernels.layouts import ROWS
from ockham.kernels.native import core, reason
from ockham.weights.bf16 import Bf16
from ockham.weights.fp32 import Fp32
from ockham.weights.int4 import Int4
from ockham.weights.int8 import Int8, grouped, hadamard

if core is None:
    pytest.skip(reason, allow_module_level=True)

from ockham.kernels.cpu_layout import PanelsLinear, in_panels
from tests.helpers import isas
from tests.helpers.live import wait_for
from tests.helpers.threads import asleep, switches, threads_of

FORMATS = {
    "fp32": Fp32(),
    "bf16": Bf16(),
    "int8": Int8(),
    "int8-adopted": Int8(0),
    "int4-32": Int4.of(32),
    "int4-64": Int4.of(64),
    "int4-128": Int4.of(128),
    "int4-zeros": Int4.of(32),
}
ISAS = isas.params()
POOLS = {threads: core.ThreadPool(threads) for threads in (1, 2)}


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def held(
    weight_format: Format, shape: tuple[int, int], values: Values, zeros: bool = False
) -> Linear:
    """A matrix in rows of values that were not encoded here."""
    matrix = ROWS.blank(weight_format, *shape, zeros)
    matrix.fill(0, values)
    return matrix


def packed(name: str, outputs: int, inputs: int, seed: int = 0) -> Linear:
    """A matrix of random weights, in rows; of random codes for "int8-adopted" and "int4-zeros"."""
    random = np.random.default_rng(seed)
    if name == "int8-adopted":
        codes = random.integers(-127, 128, (outputs, inputs), np.int8)
        values: Values = {
            "codes": np.pad(codes, ((0, 0), (0, -inputs % 64))),
            "scales": random.uniform(0.01, 0.02, (outputs, 1)).astype(np.float32),
        }
        return held(Int8(0), (outputs, inputs), values)
    if name != "int4-zeros":
        weight = normal(outputs, inputs, seed)
        return FORMATS[name].pack(outputs, inputs, iter([weight]))
    groups = (outputs, inputs // 32)
    values = {
        "codes": random.integers(0, 16, (outputs, inputs), np.uint8),
        "scales": random.uniform(0.01, 0.02, groups).astype(np.float16),
        "zeros": random.integers(0, 16, groups, np.uint8),
    }
    return held(Int4.of(32), (outputs, inputs), values, zeros=True)


PANELS_OF: WeakKeyDictionary[Linear, PanelsLinear] = WeakKeyDictionary()


def native(matrix: Linear) -> core.Matrix:
    """The matrix in panels, laid out once."""
    if matrix not in PANELS_OF:
        PANELS_OF[matrix] = in_panels(matrix)
    return PANELS_OF[matrix].native


def product(
    matrix: Linear,
    x: np.ndarray,
    isa: core.Isa,
    threads: int = 2,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    return np.asarray(core.linear(POOLS[threads], isa, native(matrix), x, bias))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 128), (37, 256), (333, 1152), (2049, 128)])
def test_a_row_has_the_same_bits_whatever_the_batch(
    name: str, outputs: int, inputs: int, isa: core.Isa
) -> None:
    matrix = packed(name, outputs, inputs)
    x = normal(64, inputs, 1)
    bias = normal(1, outputs, 2)[0]
    alone = np.concatenate([product(matrix, x[i : i + 1], isa, 1, bias) for i in range(64)])
    for threads in POOLS:
        for rows in (1, 2, 3, 7, 8, 13, 16, 33, 64):
            for start in {0, (64 - rows) // 2, 64 - rows}:
                batch = product(matrix, x[start : start + rows], isa, threads, bias)
                assert batch.tobytes() == alone[start : start + rows].tobytes(), (rows, start)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int8-adopted", "int4-128", "int4-zeros"])
def test_a_row_of_a_long_prompt_has_the_bits_that_it_has_alone(name: str, isa: core.Isa) -> None:
    # Long enough for tiles of rows, and for K to be cut into ranges that resume.
    matrix = packed(name, 48, 17 * 512)
    x = normal(500, 17 * 512, 1)
    together = product(matrix, x, isa)
    for row in (0, 11, 12, 250, 383, 384, 499):
        assert product(matrix, x[row : row + 1], isa).tobytes() == together[row].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 128), (100, 384), (530, 128)])
def test_products_are_what_the_plain_twin_says(
    name: str, outputs: int, inputs: int, isa: core.Isa
) -> None:
    matrix = packed(name, outputs, inputs)
    x = normal(9, inputs, 1)
    expected = matrix.matmul(x)
    actual = product(matrix, x, isa)
    if name.startswith("int") and isa != core.Isa.PORTABLE:
        assert actual.tobytes() == np.ascontiguousarray(expected).tobytes()
    else:
        assert np.abs(actual - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs", [1, 2, 3, 5, 17, 63, 65, 131])
@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int8-adopted"])
def test_numbers_of_inputs_that_fill_no_step(name: str, inputs: int, isa: core.Isa) -> None:
    matrix = packed(name, 18, inputs)
    x = normal(5, inputs, 1)
    expected = matrix.matmul(x)
    assert np.allclose(product(matrix, x, isa), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_int8_does_not_saturate(isa: core.Isa) -> None:
    for weight in (-128, -127, 127):
        values: Values = {
            "codes": np.full((16, 1024), weight, np.int8),
            "scales": np.ones((16, 1), np.float32),
        }
        matrix = held(Int8(0), (16, 1024), values)
        for sign in (1, -1):
            x = np.full((3, 1024), np.float32(127 * sign))
            assert (product(matrix, x, isa) == np.float32(127 * sign * weight * 1024)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_does_not_saturate(group: int, isa: core.Isa) -> None:
    for code, zero in ((15, 0), (0, 15), (0, 0), (15, 15), (15, 8)):
        values: Values = {
            "codes": np.full((16, 256), code, np.uint8),
            "scales": np.ones((16, 256 // group), np.float16),
            "zeros": np.full((16, 256 // group), zero, np.uint8),
        }
        matrix = held(Int4.of(group), (16, 256), values, zeros=True)
        for sign in (1, -1):
            x = np.full((3, 256), np.float32(127 * sign))
            assert (product(matrix, x, isa) == np.float32(127 * sign * (code - zero) * 256)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_avx2_and_avx512_agree_to_the_bit(name: str) -> None:
    isas.need("avx512")
    matrix, x = packed(name, 100, 640), normal(7, 640, 1)
    wide = product(matrix, x, core.Isa.AVX512)
    assert wide.tobytes() == product(matrix, x, core.Isa.AVX2).tobytes()
    if name == "bf16":
        assert wide.tobytes() == product(matrix, x, core.Isa.PORTABLE).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["bf16", "int8", "int4-32"])
def test_inputs_are_rounded_as_the_format_says(name: str, isa: core.Isa) -> None:
    matrix = native(packed(name, 16, 96))
    x = np.concatenate([normal(5, 96, 3), np.zeros((1, 96), np.float32)])
    x[1] *= 1e-35
    x[2, 5:9] = [1e30, -1e30, 5e29, 3.0]
    x[3] = np.repeat(np.float32([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]), 16)  # ties
    values, scales, offsets = core.prepared(POOLS[1], isa, matrix, x)
    if name == "bf16":
        import ml_dtypes

        stored = values.view(ml_dtypes.bfloat16)[:, :96]
        assert stored.tobytes() == x.astype(ml_dtypes.bfloat16).tobytes()
        return
    from ockham.weights.by_rows import quantise

    groups = hadamard(grouped(x)) if name == "int8" else x.reshape(len(x), -1, 32)
    expected, expected_scales = quantise(groups)
    count = groups[0].size  # 96, or with the zeros that fill the last group, 128
    assert (values.view(np.int8)[:, :count].reshape(expected.shape) == expected).all()
    assert scales.tobytes() == expected_scales.tobytes()
    assert (offsets == -(128 if name == "int8" else 8) * expected.sum(-1)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_nan_spoils_itself_and_no_other(name: str, bad: float, isa: core.Isa) -> None:
    matrix, x = packed(name, 40, 256), normal(6, 256, 1)
    clean = product(matrix, x, isa)
    x[2, 100] = bad
    spoiled = product(matrix, x, isa)
    assert not np.isfinite(spoiled[2]).any()
    others = [0, 1, 3, 4, 5]
    assert spoiled[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_a_table_are_the_stored_weights(name: str) -> None:
    matrix = packed(name, 50, 256)
    ids = np.array([0, 49, 17, 17], np.int32)
    expected = matrix.rows(ids)
    found = core.rows(native(matrix), ids.astype(np.int64))
    assert np.asarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    assert in_panels(matrix).rows(ids).tobytes() == expected.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int8", "int4-32", "int4-128"])
def test_every_instruction_set_packs_the_same_bits(name: str, isa: core.Isa) -> None:
    weight = normal(48, 256, 7)
    weight[3], weight[4, :32] = 0.0, 1e-40
    weight[5, :32] *= 1e-6  # a subnormal fp16 scale
    weight_format = FORMATS[name]
    expected = weight_format.encode(weight)
    codes, scales = np.empty((48 * 256,), np.uint8), np.empty(expected["scales"].size, np.uint16)
    core.quantise(POOLS[2], isa, weight_format.name, weight_format.group, weight, codes, scales)
    assert codes.tobytes() == expected["codes"].tobytes()
    assert scales.tobytes() == expected["scales"].tobytes()


def test_a_pool_does_every_task_once() -> None:
    pool = core.ThreadPool(4)
    matrix, x = packed("fp32", 512, 64), normal(3, 64, 1)
    isa, laid_out = core.detect(), native(matrix)
    expected = np.asarray(core.linear(POOLS[1], isa, laid_out, x))
    for pause in [0.0] * 300 + [0.002] * 20:
        time.sleep(pause)
        assert np.asarray(core.linear(pool, isa, laid_out, x)).tobytes() == expected.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pool_sleeps_between_its_tasks() -> None:
    own = os.getpid()
    others = threads_of(own)
    pool = core.ThreadPool(4)
    threads = sorted(threads_of(own) - others)
    assert len(threads) == 3  # the caller is the fourth
    matrix, x = packed("fp32", 512, 64), normal(3, 64, 1)
    core.linear(pool, core.detect(), native(matrix), x)
    wait_for(lambda: all(asleep(own, thread) for thread in threads), 10)
    before = [switches(own, thread) for thread in threads]
    time.sleep(0.3)
    assert [switches(own, thread) for thread in threads] == before  # none woke even once


def test_rows_that_do_not_fit_are_not_packed() -> None:
    matrix = native(packed("int4-32", 16, 64))
    codes, scales = np.zeros(16 * 64, np.uint8), np.zeros(16 * 2 * 2, np.uint8)
    with pytest.raises(ValueError, match="whole panels"):
        core.pack(POOLS[1], matrix, 0, 15, {"codes": codes, "scales": scales})
    with pytest.raises(ValueError, match="whole panels"):
        core.pack(POOLS[1], matrix, 16, 16, {"codes": codes, "scales": scales})
    with pytest.raises(ValueError, match="field codes does not hold 16 rows of 64 bytes"):
        core.pack(POOLS[1], matrix, 0, 16, {"codes": codes[1:], "scales": scales})
    with pytest.raises(ValueError, match="field scales does not hold"):
        core.pack(POOLS[1], matrix, 0, 16, {"codes": codes})
    with pytest.raises(ValueError, match="fields that such a matrix does not have"):
        core.pack(POOLS[1], matrix, 0, 16, {"codes": codes, "scales": scales, "zeros": scales})


def test_wrong_arrays_are_refused_with_a_sentence() -> None:
    matrix = native(packed("int8", 16, 64))
    with pytest.raises(ValueError, match="the input has 63 columns, but the matrix 64"):
        core.linear(POOLS[1], core.detect(), matrix, normal(1, 63, 0))
    with pytest.raises(ValueError, match="should be 1024 bytes, not 64"):
        core.matrix("int8", 16, 64, np.zeros(64, np.uint8))
    with pytest.raises(ValueError, match="int8 has groups of 64 inputs"):
        core.matrix("int8", 16, 64, np.zeros(64, np.uint8), group=32)
    with pytest.raises(ValueError, match="groups of a multiple of 32"):
        core.matrix("int4", 16, 64, np.zeros(64, np.uint8), group=48)
    with pytest.raises(ValueError, match="no kernels for matrices of the kind int3"):
        core.matrix("int3", 16, 64, np.zeros(64, np.uint8))
    with pytest.raises(RuntimeError, match="no instruction set is called 'mmx'"):
        core.parse_isa("mmx")
