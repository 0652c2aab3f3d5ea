"""Products by planes of bits are those of integers."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from benchmarks.bit_planes import WIDTHS, bipolar, built, product
from tests.helpers import isas


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_product_by_planes_is_that_of_the_integers(tmp_path: Path) -> None:
    isas.need("avx2")
    program, rng = built(tmp_path), Random(1)
    for bits in WIDTHS:
        weights, inputs = (bipolar(rng, 512, each) for each in bits)
        total, *_ = product(program, weights, inputs, bits)
        assert total == sum(w * x for w, x in zip(weights, inputs, strict=True)), bits
