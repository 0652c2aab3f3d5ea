"""A GGUF file rotates as the directory that it was made from, whichever keys it says so with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from ockham.core.errors import ModelError
from ockham.kernels.ops import Rope
from ockham.model.checkpoint.opening import open_model
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny import tiny_llama

LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONGEST = 512


def rope_of(path: Path) -> Rope:
    opened = open_model(path)
    opened.source.close()
    variant = opened.description.ropes[0]
    assert variant is not None
    return variant.fix(LONGEST)


def as_gguf(
    tmp_path: Path,
    add: Callable[[gguf.GGUFWriter], object],
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    directory = tiny_llama(tmp_path / "plain")
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", config, weights, metadata=add, extra=extra)
    return path


def yarn(**more: float) -> Callable[[gguf.GGUFWriter], None]:
    """What llama.cpp's converter writes for YaRN."""

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)
        for key, value in more.items():
            writer.add_float32(f"llama.rope.scaling.{key}", value)

    return add


def typed_linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


CASES: dict[str, tuple[dict[str, Any], Callable[[gguf.GGUFWriter], object]]] = {
    "linear": (LINEAR, typed_linear),
    "a factor without a type": (LINEAR, lambda w: w.add_rope_scaling_factor(4.0)),
    "the key of 2023": (LINEAR, lambda w: w.add_float32("llama.rope.scale_linear", 4.0)),
    "no scaling": ({"rope_type": "default"}, lambda w: w.add_rope_scaling_factor(1.0)),
    "yarn": (YARN, yarn()),
    "yarn from 16 turns": ({**YARN, "beta_fast": 16.0}, yarn(yarn_beta_fast=16.0)),
    "yarn to 2 turns": ({**YARN, "beta_slow": 2.0}, yarn(yarn_beta_slow=2.0)),
    "yarn's attention": ({**YARN, "attention_factor": 0.5}, yarn(yarn_attn_factor=0.5)),
    "extrapolating fully": (YARN, yarn(yarn_ext_factor=1.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_rotates_as_its_directory(name: str, tmp_path: Path) -> None:
    scaling, add = CASES[name]
    expected = rope_of(tiny_llama(tmp_path / "scaled", rope_scaling=scaling))
    found = rope_of(as_gguf(tmp_path, add))
    assert found.inverse_frequencies.tobytes() == expected.inverse_frequencies.tobytes()
    assert found.scale == expected.scale
    plain = rope_of(tiny_llama(tmp_path / "unscaled"))
    same = found.inverse_frequencies.tobytes() == plain.inverse_frequencies.tobytes()
    assert same is (name == "no scaling")


def test_factors_of_single_frequencies_are_stretched_too(tmp_path: Path) -> None:
    factors = np.array([1, 1, 2, 8], np.float32)
    found = rope_of(as_gguf(tmp_path, typed_linear, {"rope_freqs.weight": factors}))
    plain = rope_of(tiny_llama(tmp_path / "unscaled"))
    np.testing.assert_allclose(found.inverse_frequencies, plain.inverse_frequencies / factors / 4)


def test_yarn_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"yarn_ext_factor is 0\.5; only 1 is supported"):
        open_model(as_gguf(tmp_path, yarn(yarn_ext_factor=0.5)))
