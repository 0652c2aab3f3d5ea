"""Weights are never held twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

MEASURE = """
import sys
from ockham.core.config import EngineConfig
from ockham.model.loading import load_model, plan_model

def peak():
    fields = open("/proc/self/status").read().split("VmHWM:")[1].split()
    return int(fields[0]) * 1024

config = EngineConfig(model=sys.argv[1], dtype=sys.argv[2], skip_tokenizer_init=True)
plan_model(config).source.close()  # everything is imported; no weight is read
import ockham.kernels.reference.backend
before = peak()
model = load_model(config)
print(model.weight_bytes, peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint of 230 MB, with one matrix that is a quarter of it."""
    directory = tmp_path_factory.mktemp("large")
    sizes = {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 5,
        "num_attention_heads": 16,
    }
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, **sizes}
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    tensors = {"model.embed_tokens.weight": random(32000, 1024), "model.norm.weight": random(1024)}
    for layer in range(5):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = random(1024, 1024)
        for name, shape in (("gate", (4096, 1024)), ("up", (4096, 1024)), ("down", (1024, 4096))):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = random(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = random(1024)
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(("dtype", "nbytes"), [("auto", 2), ("float32", 4)])
def test_loading_peaks_at_most_15_percent_above_the_weights(
    large: Path, dtype: str, nbytes: int
) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), dtype],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    weights, peak = map(int, printed.split())
    assert weights > 100_000_000 * nbytes
    assert peak < 1.15 * weights, f"a peak of {peak} for {weights} bytes of weights"
    print(f"{dtype}: peak {peak / weights:.3f} of {weights / 1e6:.0f} MB")
