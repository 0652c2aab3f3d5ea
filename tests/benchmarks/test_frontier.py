"""`python -m benchmarks.frontier`: points of one model, and what lies between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frontier import Judge, Point, checkpoint, interpolated, table, write_planted
from ockham.core.config import EngineConfig
from ockham.lab.evidence.real_model import find_real_model
from ockham.model.loading import load_model

SIZES = {"hidden": 256, "inner": 512, "layers": 2, "heads": 4, "kv_heads": 2}


def test_formats_are_judged_on_the_unquantised_model(tmp_path: Path) -> None:
    write_planted(tmp_path, **SIZES)
    windows = np.random.default_rng(0).integers(0, 4096, (2, 64)).astype(np.int32)
    judge = Judge(tmp_path, windows, threads=1)
    exact, eight, four = (
        judge.point("format", form, tmp_path, form) for form in ("bf16", "int8", "int4:64")
    )
    assert exact.kl < 1e-6 < eight.kl < four.kl
    assert 16.5 > exact.bits > eight.bits > four.bits > 4.25


def test_planted_channels_make_some_inputs_large(tmp_path: Path) -> None:
    write_planted(tmp_path, **SIZES)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    model = load_model(EngineConfig(model=str(tmp_path), kv_cache_memory_bytes=1 << 20))
    norms = [op.norm.weight for op in model.program.ops if getattr(op, "norm", None) is not None]
    largest = max(float(weight.max() / np.median(weight)) for weight in norms)
    assert largest > 10


@pytest.mark.skipif(find_real_model() is None, reason="the real model is not installed")
def test_the_real_model_becomes_a_checkpoint_in_bf16(tmp_path: Path) -> None:
    path = checkpoint("smollm2", tmp_path / "model")
    loaded = load_model(EngineConfig(model=str(path), kv_cache_memory_bytes=1 << 24))
    assert 8 * loaded.weight_bytes / loaded.parameters == pytest.approx(16, abs=0.01)
    assert (path / "tokenizer.json").exists()


def test_between_two_formats_the_logarithm_is_a_line() -> None:
    points = [
        Point("format", "a", 4.0, 1e-1),
        Point("fitted", "b", 6.0, 1e-3),
        Point("format", "worse", 5.0, 9e-1),
        Point("format", "exact", 16.0, 1e-9),
        Point("mix", "m", 5.0, 5e-3),
    ]
    assert interpolated(points, 5.0) == pytest.approx(1e-2)
    assert interpolated(points, 8.0) == pytest.approx(1e-3)
    assert interpolated(points, 3.0) is None
    assert "| mix | m | 5.00 | 0.005 | 50% |" in table(points)
