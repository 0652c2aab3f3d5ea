"""Codebooks of random keys for a checkpoint's heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ockham.core.config import EngineConfig
from ockham.model.checkpoint.codebook_files import BOOK_SIZE, Codebooks, packed_codebooks
from ockham.model.loading import plan_model


def write_random_codebooks(file: Path, checkpoint: Path, seed: int = 0) -> Path:
    """Write them; for layers without a window."""
    planned = plan_model(EngineConfig(model=str(checkpoint), max_model_len=1, max_num_seqs=1))
    planned.source.close()
    layouts = planned.plan.layouts(planned.description)
    whole = [layout for layout in layouts if layout.window is None]
    layers = tuple(sorted(layer for layout in whole for layer in layout.layers))
    spec = whole[0].spec.uniform
    shape = (len(layers), spec.heads, BOOK_SIZE, spec.width)
    centroids = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    metrics = np.broadcast_to(np.eye(spec.width, dtype=np.float32), (*shape[:2], *2 * shape[3:]))
    file.write_bytes(packed_codebooks(Codebooks(layers, centroids, metrics), {}))
    return file
