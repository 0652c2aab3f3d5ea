"""The compiled products with GGUF's block types: exact whatever the batch, and what the plain twin
says they are."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import pytest

from ockham.core.errors import ModelError
from ockham.core.seams import Linear
from ockham.kernels.native import core, reason
from ockham.model.checkpoint.gguf.blocks import READERS, read_blocks

if core is None:
    pytest.skip(reason, allow_module_level=True)

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ockham.kernels.cpu_layout import PANELS, PanelsLinear, in_panels
from tests.helpers import isas
from tests.helpers.gguf_blocks import random_bytes, set_scales

ISAS = isas.params()
POOLS = {threads: core.ThreadPool(threads) for threads in (1, 2)}


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def matrix_of(kind: str, raw: np.ndarray, inputs: int) -> Linear:
    cut = [read_blocks(kind, raw[:5]), read_blocks(kind, raw[5:])] if len(raw) > 5 else None
    return READERS[kind]().adopt(len(raw), inputs, iter(cut or [read_blocks(kind, raw)]))


PANELS_OF: WeakKeyDictionary[Linear, PanelsLinear] = WeakKeyDictionary()


def product(
    matrix: Linear,
    x: np.ndarray,
    isa: core.Isa,
    threads: int = 2,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    if matrix not in PANELS_OF:
        PANELS_OF[matrix] = in_panels(matrix)
    return np.asarray(core.linear(POOLS[threads], isa, PANELS_OF[matrix].native, x, bias))


@pytest.mark.parametrize("kind", READERS)
def test_rows_are_those_that_the_gguf_package_dequantises(kind: str) -> None:
    raw = random_bytes(kind, 37, 512)
    matrix = matrix_of(kind, raw, 512)
    meant = dequantize(raw, GGMLQuantizationType[kind])
    ids = np.array([36, 0, 17, 17, *range(37)], np.int32)
    assert matrix.rows(ids).tobytes() == meant[ids].tobytes()
    laid_out = in_panels(matrix)
    assert laid_out.rows(ids).tobytes() == meant[ids].tobytes()
    assert laid_out.nbytes == PANELS.nbytes(READERS[kind](), 37, 512) == laid_out.native.nbytes


def test_packing_refuses_arrays_that_do_not_fit() -> None:
    rows = read_blocks("Q4_K", random_bytes("Q4_K", 16, 512))
    fields = {name: getattr(rows, name) for name in READERS["Q4_K"]().fields(512)}
    matrix = PANELS.blank(READERS["Q4_K"](), 16, 512)
    matrix.fill(0, fields)
    for wrong in (
        {name: array[:15] for name, array in fields.items()},
        {**fields, "codes": rows.codes[:, :256]},
        {name: array for name, array in fields.items() if name != "minima"},
        {**fields, "group_scales": rows.group_scales[:, 1:]},
    ):
        with pytest.raises(ValueError, match=r"whole panels|does not hold 16 rows"):
            matrix.fill(0, wrong)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 256), (16, 512), (100, 1024)])
def test_products_are_what_the_plain_twin_says(
    kind: str, outputs: int, inputs: int, isa: core.Isa
) -> None:
    matrix = matrix_of(kind, random_bytes(kind, outputs, inputs), inputs)
    x = normal(11, inputs, 1)
    x[3, 32:64] = 0
    expected = np.ascontiguousarray(matrix.matmul(x))
    actual = product(matrix, x, isa)
    if isa == core.Isa.PORTABLE:  # which rounds products before it adds them
        assert np.abs(actual - expected).max() <= 2e-6 * np.abs(expected).max()
    else:
        assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", READERS)
def test_products_are_near_those_of_the_dequantised_weights(kind: str) -> None:
    raw = random_bytes(kind, 33, 1024)
    meant, x = dequantize(raw, GGMLQuantizationType[kind]), normal(5, 1024, 3)
    found = product(matrix_of(kind, raw, 1024), x, core.detect())
    size = np.abs(x) @ np.abs(meant).T
    assert (np.abs(found - x @ meant.T) < 0.01 * size).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("extreme", [0, 255])
def test_no_sum_overflows(kind: str, extreme: int, isa: core.Isa) -> None:
    """All codes and factors at an end; levels in a table have theirs in the middle, too."""
    raw = np.full_like(random_bytes(kind, 16, 512), extreme)
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = raw.reshape(16, -1, block_bytes)
    set_scales(kind, blocks, np.ones(blocks.shape[:-1]))
    if kind == "Q6_K" and extreme == 0:
        blocks[..., 192:208] = 128  # the scale -128 with the code -32
    matrix = matrix_of(kind, raw, 512)
    for sign in (-1, 1):
        x = np.full((9, 512), sign, np.float32)
        assert product(matrix, x, isa).tolist() == matrix.matmul(x).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("outputs", "inputs"), [(37, 256), (333, 1024)])
def test_a_row_has_the_same_bits_whatever_the_batch(
    kind: str, outputs: int, inputs: int, isa: core.Isa
) -> None:
    matrix = matrix_of(kind, random_bytes(kind, outputs, inputs), inputs)
    x, bias = normal(64, inputs, 1), normal(1, outputs, 2)[0]
    alone = np.concatenate([product(matrix, x[i : i + 1], isa, 1, bias) for i in range(64)])
    for threads in POOLS:
        for rows in (1, 2, 3, 7, 8, 13, 16, 33, 64):
            for start in {0, (64 - rows) // 2, 64 - rows}:
                batch = product(matrix, x[start : start + rows], isa, threads, bias)
                assert batch.tobytes() == alone[start : start + rows].tobytes(), (rows, start)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", READERS)
def test_the_largest_codes_and_factors_overflow_nothing(kind: str, isa: core.Isa) -> None:
    weight_format = READERS[kind]()
    shape = weight_format.shape
    levels = shape.levels or tuple(range(1 << shape.bits))
    for code in {levels.index(min(levels)), levels.index(max(levels))}:
        rows = read_blocks(kind, random_bytes(kind, 16, 512))
        rows.codes[...] = code
        if rows.group_scales is not None:
            rows.group_scales[...] = rows.group_scales.max()
        matrix = weight_format.adopt(16, 512, iter([rows]))
        for sign in (-1, 1):
            x = np.full((9, 512), sign, np.float32)
            found, meant = product(matrix, x, isa), matrix.matmul(x)
            assert np.abs(found - meant).max() <= 2e-6 * np.abs(meant).max()


@pytest.mark.parametrize("exponent", [0, 1, 2, 127, 252])
def test_powers_of_two_of_any_size_are_those_of_the_gguf_package(exponent: int) -> None:
    raw = random_bytes("MXFP4", 16, 64).reshape(16, -1, 17)
    raw[..., 0] = exponent
    matrix = matrix_of("MXFP4", raw.reshape(16, -1), 64)
    meant = dequantize(raw.reshape(16, -1), GGMLQuantizationType.MXFP4)
    ids = np.arange(16, dtype=np.int32)
    assert matrix.rows(ids).tobytes() == in_panels(matrix).rows(ids).tobytes() == meant.tobytes()
    x = normal(3, 64, 1) * np.float32(1e-3)
    for isa in (core.Isa.PORTABLE, core.detect()):
        assert np.allclose(product(matrix, x, isa), matrix.matmul(x), rtol=1e-5, atol=0)


def test_a_power_of_two_that_fp32_cannot_hold_is_refused() -> None:
    raw = random_bytes("MXFP4", 16, 64)
    raw[3, 17] = 255
    with pytest.raises(ModelError, match=r"NaN, or a scale too large .* \(rows 0 to 4\)"):
        matrix_of("MXFP4", raw, 64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "Q2_K", "IQ4_XS", "TQ2_0"])
def test_a_row_of_a_long_prompt_has_the_bits_that_it_has_alone(kind: str, isa: core.Isa) -> None:
    # Long enough for tiles of rows, and for K to be cut into ranges that resume.
    matrix = matrix_of(kind, random_bytes(kind, 32, 80 * 256), 80 * 256)
    x = normal(400, 80 * 256, 1)
    together = product(matrix, x, isa)
    for row in (0, 11, 250, 383, 384, 399):
        assert product(matrix, x[row : row + 1], isa).tobytes() == together[row].tobytes()


@pytest.mark.parametrize("kind", READERS)
def test_nan_in_a_row_of_inputs_stays_in_that_row(kind: str) -> None:
    matrix = matrix_of(kind, random_bytes(kind, 20, 512), 512)
    x = normal(4, 512, 1)
    alone = product(matrix, x[3:], core.detect())
    x[1, 7] = np.nan
    found = product(matrix, x, core.detect())
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3]]).all()
    assert found[3].tobytes() == alone[0].tobytes()
