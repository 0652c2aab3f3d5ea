"""Directories of trained drafters that nobody trained: weights drawn at random, or of zeros."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ockham.draft.structures.text_index import order_of
from ockham.model.checkpoint.corpus_files import Corpus, write_corpus

METHODS = ("medusa", "prompt_tokens", "early_exit")


def write_draft(
    directory: Path,
    method: str,
    *,
    hidden_size: int,
    vocab_size: int,
    num_hidden_layers: int,
    count: int = 3,
    layers: int = 1,
    scale: float = 0.5,
    seed: int = 0,
) -> Path:
    """A drafter for a model of these sizes, with `count` heads or prompt tokens."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    wide = hidden_size, hidden_size
    tensors = {
        "medusa": lambda: {
            f"heads.{i}.{name}": drawn(*shape)
            for i in range(count)
            for name, shape in (("weight", wide), ("bias", (hidden_size,)))
        },
        "prompt_tokens": lambda: {"embeddings": drawn(count, hidden_size)},
        "early_exit": lambda: {"weight": drawn(*wide), "bias": drawn(hidden_size)},
    }[method]()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "draft.safetensors")
    config = {
        "method": method,
        "hidden_size": hidden_size,
        "vocab_size": vocab_size,
        "num_hidden_layers": num_hidden_layers,
        "version": 1,
    }
    if method == "early_exit":
        config["layers"] = layers
    (directory / "draft.json").write_text(json.dumps(config))
    return directory


def indexed(directory: Path, vocabulary: int, seed: int = 0) -> Path:
    """An index of random texts in which short runs of tokens come again."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, 20_000).astype(np.int32)
    tokens[::50] = -1
    write_corpus(directory, Corpus(tokens, order_of(tokens), vocabulary, ""))
    return directory
