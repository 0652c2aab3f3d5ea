"""Maps that predict a tiny model's state from itself, and predict it badly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ockham.model.checkpoint.prediction_files import StateMaps, StateSizes, assigned, write_maps
from ockham.model.loading import LoadedModel


def write_random_maps(directory: Path, checkpoint: Path, model: LoadedModel) -> Path:
    """Random maps for a model whose layers are alike, from its own checkpoint."""
    of = model.description
    width, rng = 2 * of.kv_heads * of.head_dim, np.random.default_rng(0)
    sizes = StateSizes(of.hidden_size, of.layers, of.kv_heads, of.head_dim, of.hidden_size)
    weights = rng.standard_normal((of.layers, 2 * of.hidden_size, width)).astype(np.float32)
    biases = rng.standard_normal((of.layers, width)).astype(np.float32)
    directory.mkdir(parents=True)
    after = assigned(of.layers, of.layers)
    write_maps(directory, StateMaps(sizes, str(checkpoint), after, weights, biases, {}))
    return directory
