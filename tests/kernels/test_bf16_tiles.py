"""bf16 on AMX: every number of rows has the bits of a plain sum in the order that
csrc/kinds/bf16.cpp states."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.kernels.native import core, reason

if core is None:
    pytest.skip(reason, allow_module_level=True)

from ockham.kernels.cpu import CpuBackend
from ockham.kernels.memory import allocate
from tests.helpers import isas

POOLS = {threads: core.ThreadPool(threads) for threads in (1, 2)}
BLOCK = 32
"""Inputs of one tile."""
LEAST = np.float32(2.0**-126)
"""The least magnitude that is not denormal."""


@pytest.fixture(autouse=True)
def tiles() -> None:
    isas.need("amx")


def flushed(values: np.ndarray) -> np.ndarray:
    """Denormals are zeros of their own sign."""
    return np.where(np.abs(values) < LEAST, np.copysign(np.float32(0), values), values)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once, of fp32 values that hold bf16 (a, b) and fp32 (c).

    The product is exact in float64. Their sum is rounded to odd there, so that the second rounding,
    to fp32, is right (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product, added = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + added
    back = total - product
    error = (product - (total - back)) + (added - back)
    bits = total.view(np.int64)
    inexact_and_even = (error != 0) & (bits & 1 == 0)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where(inexact_and_even, bits + toward, bits).view(np.float64)
    return flushed(odd.astype(np.float32))


def widened(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """The bits of bf16, nearest even, of numbers."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def twin(x: np.ndarray, weights: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The sums of tiles, one product at a time. `weights` are bits of bf16."""
    rows, inputs = x.shape
    fill = ((0, 0), (0, -inputs % BLOCK))
    a = flushed(np.pad(widened(rounded(x)), fill))
    b = flushed(np.pad(widened(weights), fill))
    y = np.zeros((rows, len(weights)), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for begin in range(0, a.shape[1], BLOCK):
            parts = np.zeros((2, *y.shape), np.float32)
            for k in range(begin, begin + BLOCK):
                parts[k % 2] = fma(a[:, k, None], b[None, :, k], parts[k % 2])
            y = flushed(y + flushed(parts[0] + parts[1]))
        return y if bias is None else flushed(y + flushed(bias))


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def packed(weights: np.ndarray) -> core.Matrix:
    outputs, inputs = weights.shape
    ((_, _, shape),) = core.packed_arrays("bf16", outputs, inputs)
    rows = np.zeros((shape[0] * 16, shape[1] * 2), np.uint16)
    rows[:outputs, :inputs] = weights
    panels = rows.reshape(shape[0], 16, shape[1], 2).transpose(0, 2, 1, 3)
    memory = allocate(panels.nbytes)
    memory[:] = np.ascontiguousarray(panels).reshape(-1).view(np.uint8)
    return core.matrix("bf16", outputs, inputs, memory)


def product(
    matrix: core.Matrix, x: np.ndarray, bias: np.ndarray | None, threads: int = 1
) -> np.ndarray:
    return np.asarray(core.linear(POOLS[threads], core.Isa.AMX, matrix, x, bias))


@pytest.mark.parametrize(("outputs", "inputs"), [(37, 160), (50, 75)])
def test_every_number_of_rows_sums_in_the_order_of_tiles(outputs: int, inputs: int) -> None:
    weights = rounded(normal(outputs, inputs, 1) * np.exp(4 * normal(outputs, inputs, 2)))
    x, bias, matrix = normal(100, inputs, 3), normal(1, outputs, 4)[0], packed(weights)
    plain, with_bias = twin(x, weights, None), twin(x, weights, bias)
    for rows in range(1, 101):
        added, expected = (bias, with_bias) if rows % 2 else (None, plain)
        found = product(matrix, x[:rows], added, threads=1 + rows % 3 // 2)
        assert found.tobytes() == expected[:rows].tobytes(), rows


@pytest.mark.parametrize("inputs", [1, 2, 3, 31, 32, 33, 63, 65])
def test_inputs_that_fill_no_tile(inputs: int) -> None:
    for outputs in (1, 16, 49):
        weights, x = rounded(normal(outputs, inputs, 1)), normal(70, inputs, 2)
        expected = twin(x, weights, None)
        for rows in (1, 2, 3, 4, 17, 33, 70):
            assert product(packed(weights), x[:rows], None).tobytes() == expected[:rows].tobytes()


def test_ranges_of_inputs_and_tiles_of_rows_change_no_bit() -> None:
    inputs = 70 * BLOCK + 10
    weights, x = rounded(normal(83, inputs, 1)), normal(401, inputs, 2)
    matrix = packed(weights)
    together = [product(matrix, x, None, threads) for threads in (1, 2)]
    assert together[0].tobytes() == together[1].tobytes()
    alone = np.concatenate([product(matrix, x[i : i + 1], None) for i in range(len(x))])
    assert together[0].tobytes() == alone.tobytes()
    some = slice(0, 401, 100)
    assert together[0][some].tobytes() == twin(x[some], weights, None).tobytes()


def test_denormals_and_zeros_of_either_sign() -> None:
    """Values around 2^-63, whose products and sums are denormal or just not."""
    random = np.random.default_rng(5)
    exponents = random.integers(60, 68, (50, 75)) * random.integers(0, 2, (50, 75))
    signs, fractions = random.integers(0, 2, (50, 75)), random.integers(0, 128, (50, 75))
    bits = signs << 15 | exponents << 7 | fractions
    weights = bits.astype(np.uint16)
    x = np.roll(widened(weights), 7, axis=1)[:40]
    bias = (random.standard_normal(50) * LEAST).astype(np.float32)
    expected, matrix = twin(x, weights, bias), packed(weights)
    assert 0 < np.count_nonzero(expected) < expected.size
    for rows in (1, 2, 3, 4, 16, 40):
        assert product(matrix, x[:rows], bias).tobytes() == expected[:rows].tobytes()


def test_what_is_not_finite_stays_so_and_in_its_row() -> None:
    weights, x = rounded(normal(37, 75, 1)), normal(40, 75, 2)
    x[3, 70], x[9, 5] = np.inf, np.nan
    others = np.delete(np.arange(40), [3, 9])
    found = product(packed(weights), x, None)
    assert np.isinf(found[3]).all()
    assert np.isnan(found[9]).all()
    assert found[others].tobytes() == twin(x[others], weights, None).tobytes()
    assert product(packed(weights), x[3:4], None).tobytes() == found[3].tobytes()


def test_a_model_with_bf16_matrices_has_another_numerics_id_on_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = {}
    for name in ("avx512", "amx"):
        isas.use(name, monkeypatch)
        backend = CpuBackend(1)
        for formats in (("int8",), ("bf16",), ("int4", "bf16")):
            ids[name, formats] = backend.numerics(formats)
    assert ids["avx512", ("int8",)] == ids["amx", ("int8",)]
    assert ids["avx512", ("bf16",)] != ids["amx", ("bf16",)]
    assert ids["avx512", ("int4", "bf16")] != ids["amx", ("int4", "bf16")]
