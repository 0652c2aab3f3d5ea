"""Layouts: what lies in files today is what lay in them when they were written."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import make
from ockham.core.seams import Linear
from ockham.kernels.layouts import ROWS, find_layout
from ockham.kernels.native import core, reason
from ockham.weights.int4 import Int4
from ockham.weights.int8 import Int8

if core is None:
    pytest.skip(reason, allow_module_level=True)

from ockham.kernels.cpu_layout import PANELS, in_panels
from ockham.model.checkpoint.gguf.blocks import READERS, read_blocks
from tests.helpers.gguf_blocks import random_bytes

# Made by the version before layouts had names. They change with PANELS.name only.
PACKED = {
    "fp32": "eaec6b54009e37a5",
    "bf16": "1c15812d2ef7cba9",
    "int8": "74445effa5f8ebc5",
    "int4:32": "44419ee85684ea1e",
    "int4:128": "e13b953c8e6ec0d9",
    "q5_0": "8666be0880213fdb",
}
BLOCKS = {
    "Q4_1": "3e5f33ff3507bc65",
    "Q4_K": "0019b3cf957b200e",
    "Q5_0": "ecfdb2501429e4cb",
    "Q5_1": "992550bf2eaf7ad7",
    "Q5_K": "e4d7f5c8588bac21",
    "Q6_K": "15fe0d683cbee43b",
    "Q8_0": "0aa3fb4f907f859b",
}


def digest(linear: Linear) -> str:
    """Names, dtypes, shapes and bytes of the arrays."""
    found = hashlib.blake2b(digest_size=8)
    for name, array in sorted(linear.arrays.items()):
        found.update(f"{name} {array.dtype.name} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def weight(columns: int = 768) -> np.ndarray:
    rows = np.random.default_rng(5).standard_normal((21, 768)).astype(np.float32)
    return rows[:, :columns]


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_lie_as_they_did(name: str) -> None:
    assert digest(make("format", name).pack(21, 768, [weight()], PANELS)) == PACKED[name]


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_lie_as_they_did(kind: str) -> None:
    rows = read_blocks(kind, random_bytes(kind, 21, 768))
    assert digest(READERS[kind]().adopt(21, 768, [rows], PANELS)) == BLOCKS[kind]


def test_inputs_that_fill_no_unit_are_padded_as_they_were() -> None:
    assert digest(make("format", "bf16").pack(21, 767, [weight(767)], PANELS)) == "2391bbc1671f977b"
    assert digest(make("format", "int8").pack(21, 700, [weight(700)], PANELS)) == "a1e6ddcf16d8db43"


def test_what_a_checkpoint_quantised_lies_as_it_did() -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 16, (21, 768)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, (21, 6)).astype(np.float16)
    zeros = rng.integers(0, 16, (21, 6)).astype(np.uint8)
    encoding = Encoding(4, 128, half_scales=True, zeros=True)
    rows = QuantisedRows(codes, scales, zeros)
    assert digest(Int4.of(64).adopt(21, 768, encoding, [rows], PANELS)) == "f39bc2f6d06a40f9"
    codes = rng.integers(0, 256, (21, 700)).astype(np.uint8)
    single = rng.uniform(0.01, 0.02, (21, 1)).astype(np.float32)
    rows = QuantisedRows(codes, single, np.full((21, 1), 128, np.uint8))
    encoding = Encoding(8, 700, half_scales=False, zeros=False)
    assert digest(Int8(0).adopt(21, 700, encoding, [rows], PANELS)) == "0d891e49a4c75a15"


@pytest.mark.parametrize("name", [*PACKED, "int8"])
def test_rows_and_panels_hold_the_same_weights(name: str) -> None:
    weight_format, ids = make("format", name), np.array([20, 0, 7, 7], np.int32)
    rows = weight_format.pack(21, 768, [weight()], ROWS)
    panels = weight_format.pack(21, 768, [weight()], PANELS)
    assert rows.rows(ids).tobytes() == panels.rows(ids).tobytes()
    assert in_panels(rows).rows(ids).tobytes() == panels.rows(ids).tobytes()
    assert in_panels(panels) is panels


def test_layouts_are_found_by_their_names() -> None:
    assert find_layout("cpu-1") is PANELS
    assert find_layout("rows-1") is ROWS
    assert find_layout("cpu-2") is None
