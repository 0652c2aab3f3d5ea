"""Heads of random weights that score the tokens of a model of any sizes, and random alphas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ockham.model.checkpoint.keep_files import CONFIG_FILE, VERSION, WEIGHTS_FILE, ModelSizes

MIDDLE = 16
"""Values between the two matrices of a rule that has two."""


def write_random_heads(directory: Path, rule: str, sizes: ModelSizes, *, inner: bool) -> Path:
    """Scores are spread about as widely as a normal distribution; `inner`: with two matrices."""
    rng = np.random.default_rng(7)
    layers, heads, width = sizes.layers, sizes.kv_heads, sizes.hidden_size
    tensors = {
        "biases": rng.standard_normal((layers, heads)) / 10,
        "quantiles": np.quantile(rng.standard_normal(20_000), np.linspace(0, 1, 101)),
    }
    if inner:
        tensors["inner"] = rng.standard_normal((layers, MIDDLE, width)) / np.sqrt(width)
        tensors["inner_biases"] = rng.standard_normal((layers, MIDDLE))
        width = MIDDLE
    tensors["weights"] = rng.standard_normal((layers, heads, width)) / np.sqrt(width)
    return _write(directory, rule, sizes, tensors)


def write_random_alphas(directory: Path, rule: str, sizes: ModelSizes, seed: int = 7) -> Path:
    """How much each head needs a whole text, from 0 to 1."""
    drawn = np.random.default_rng(seed).random((sizes.layers, sizes.kv_heads))
    return write_alphas(directory, rule, sizes, drawn)


def write_alphas(directory: Path, rule: str, sizes: ModelSizes, alphas: np.ndarray) -> Path:
    """Of shape (layers, kv_heads)."""
    return _write(directory, rule, sizes, {"alphas": alphas})


def _write(directory: Path, rule: str, sizes: ModelSizes, tensors: dict[str, np.ndarray]) -> Path:
    config = {
        "rule": rule,
        "version": VERSION,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
    }
    directory.mkdir(parents=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    save_file(
        {name: values.astype(np.float32) for name, values in tensors.items()},
        directory / WEIGHTS_FILE,
    )
    return directory
