"""Products of integers on AMX tiles: the bits of avx512, whatever the rows, the matrix and the
cutting. (Those of bf16: test_bf16_tiles.py.)"""

from __future__ import annotations

import numpy as np
import pytest

from ockham.kernels.native import core, reason
from ockham.model.checkpoint.gguf.blocks import READERS, read_blocks

if core is None:
    pytest.skip(reason, allow_module_level=True)

from ockham.kernels.cpu import CpuBackend
from ockham.kernels.cpu_layout import in_panels
from ockham.kernels.memory import allocate
from tests.helpers import isas
from tests.helpers.gguf_blocks import random_bytes

POOLS = {threads: core.ThreadPool(threads) for threads in (1, 2)}
MANY = 32
"""Rows that surely go on tiles."""


@pytest.fixture(autouse=True)
def tiles() -> None:
    isas.need("amx")


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def matrix(
    kind: str, outputs: int, inputs: int, group: int = 0, zeros: tuple[int, int] | None = None
) -> core.Matrix:
    """A matrix of any codes, with zero points in the range `zeros` if that is given."""
    random = np.random.default_rng(outputs + inputs + group)
    if kind in READERS:
        blocks = read_blocks(kind, random_bytes(kind, outputs, inputs))
        return in_panels(READERS[kind]().adopt(outputs, inputs, iter([blocks]))).native
    arrays = {}
    for name, dtype, shape in core.packed_arrays(kind, outputs, inputs, group, zeros is not None):
        if name == "scale":
            values = random.uniform(0.01, 0.02, shape).astype(dtype)
        else:
            low, high = zeros if zeros and name == "zero" else (0, 255)
            values = random.integers(low, high, shape, np.uint8, endpoint=True)
        arrays[name] = allocate(values.nbytes)
        arrays[name][:] = values.reshape(-1).view(np.uint8)
    return core.matrix(kind, outputs, inputs, arrays.pop("weight"), group, **arrays)


def check(tested: core.Matrix, rows: int, bias: bool = False, threads: int = 1) -> None:
    x = normal(rows, tested.inputs, rows)
    added = normal(1, tested.outputs, 1)[0] if bias else None
    plain, tiled = (
        np.asarray(core.linear(POOLS[threads], isa, tested, x, added))
        for isa in (core.Isa.AVX512, core.Isa.AMX)
    )
    assert tiled.tobytes() == plain.tobytes(), (rows, threads)


KINDS = [
    ("int8", 0, None),
    ("int8", 64, None),
    ("int4", 32, None),
    ("int4", 64, None),
    ("int4", 128, (0, 16)),
    *((kind, 0, None) for kind in READERS),
]


@pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
def test_every_number_of_rows_has_the_bits_of_avx512(
    kind: str, group: int, zeros: tuple[int, int] | None
) -> None:
    tested = matrix(kind, 37, 256, group, zeros)
    for rows in range(1, 71):
        check(tested, rows, bias=rows % 2 == 0)


@pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
def test_ranges_of_inputs_and_tiles_of_rows_change_no_bit(
    kind: str, group: int, zeros: tuple[int, int] | None
) -> None:
    tested = matrix(kind, 83, 17 * 512, group, zeros)
    for rows, threads in ((33, 1), (401, 2)):
        check(tested, rows, bias=True, threads=threads)


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("inputs", [1, 3, 63, 65, 131, 190])
def test_inputs_that_fill_no_group(inputs: int, group: int) -> None:
    for outputs in (1, 16, 50):
        check(matrix("int8", outputs, inputs, group), MANY + 1)


@pytest.mark.parametrize("group", [32, 96, 128, 160, 224, 256])
def test_groups_of_any_size(group: int) -> None:
    for zeros in (None, (0, 16)):
        check(matrix("int4", 37, 5 * group, group, zeros), MANY + 1)


def test_zero_points_that_no_int8_holds() -> None:
    for zeros in ((0, 128), (120, 140), (0, 255)):
        check(matrix("int4", 70, 256, 32, zeros), MANY + 1)


def test_what_is_not_finite_stays_so() -> None:
    tested = matrix("int8", 37, 256, 64)
    x = normal(MANY + 2, 256, 1)
    x[3, 70], x[9, 5] = np.inf, np.nan
    plain, tiled = (
        np.asarray(core.linear(POOLS[1], isa, tested, x, None))
        for isa in (core.Isa.AVX512, core.Isa.AMX)
    )
    assert np.isnan(tiled[[3, 9]]).all()
    assert np.array_equal(plain, tiled, equal_nan=True)


def test_a_model_has_one_numerics_id_with_tiles_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formats = {"int8", "int4", *(reader().name for reader in READERS.values())}
    ids = set()
    for name in ("avx512", "amx"):
        isas.use(name, monkeypatch)
        ids.add(CpuBackend(1).numerics(formats))
    assert len(ids) == 1
