"""What `ockham train kv-prediction` writes: a directory with `prediction.json`, which says for
which two models it is, and `prediction.safetensors`, the maps from the one's states to the
other's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.found_tensors import FoundTensors
from ockham.model.files.safetensors import write_floats
from ockham.model.files.untrusted import read_object

CONFIG_FILE, WEIGHTS_FILE = "prediction.json", "prediction.safetensors"
VERSION = 1
BLOCK_ROWS = 128
"""Rows that are multiplied together, always as many, so that a row's bits depend on no other."""
LEAST_SQUARE = 1e-6
_SIZES = ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "auxiliary_size")


@dataclass(frozen=True, slots=True)
class StateSizes:
    """The models that maps are between, as far as their sizes tell them: of the base model its
    hidden size, layers, key-value heads in each and their elements; the auxiliary's hidden size."""

    hidden_size: int
    layers: int
    kv_heads: int
    head_dim: int
    auxiliary_size: int


@dataclass(frozen=True, slots=True)
class StateMaps:
    """For each layer of the base model a linear map from the auxiliary model's residual stream.

    The features of a token for layer l are the stream before the auxiliary's first layer and after
    its layer `after[l]` (ascending), each divided by its root mean square, one behind the other
    (f). The keys before they are rotated, and then the values, are features @ weights[l] +
    biases[l].
    """

    sizes: StateSizes
    auxiliary: str
    """The model's name, or its directory."""
    after: tuple[int, ...]
    weights: Floats
    """(L, f, 2 * kv_heads * head_dim)"""
    biases: Floats
    """(L, 2 * kv_heads * head_dim)"""
    trained: Mapping[str, Any]

    def keys_and_values(self, states: Mapping[int, Floats]) -> list[tuple[Floats, Floats]]:
        """Of each layer, those of tokens with these `states` of the auxiliary, after each layer
        (-1: before the first; (n, d)): both (n, kv_heads, head_dim)."""
        count, size = len(states[-1]), self.sizes
        found: list[tuple[Floats, Floats]] = []
        for source in sorted(set(self.after)):
            own = [layer for layer, other in enumerate(self.after) if other == source]
            weights = np.concatenate(self.weights[own], axis=1)
            blocks = [block @ weights for block in _blocks(features_of(states, source))]
            every = np.concatenate(blocks)[:count] + self.biases[own].reshape(-1)
            parts = every.reshape(count, len(own), 2, size.kv_heads, size.head_dim)
            found += [(parts[:, n, 0], parts[:, n, 1]) for n in range(len(own))]
        return found

    @property
    def sources(self) -> tuple[int, ...]:
        """The auxiliary's layers whose states are read, ascending; -1 is before the first."""
        return (-1, *sorted(set(self.after)))


def assigned(base_layers: int, auxiliary_layers: int) -> tuple[int, ...]:
    """The auxiliary's layer from which each layer of the base model is predicted, in the order of
    both."""
    return tuple(layer * auxiliary_layers // base_layers for layer in range(base_layers))


def features_of(states: Mapping[int, Floats], source: int) -> Floats:
    """The features of tokens from the residual stream before the first layer (-1) and after
    another: (n, 2 d)."""
    found = []
    for x in (states[-1], states[source]):
        squares = np.square(x).mean(axis=1, keepdims=True)
        found.append(x / np.sqrt(squares + np.float32(LEAST_SQUARE)))
    every: Floats = np.concatenate(found, axis=1).astype(np.float32, copy=False)
    return every


def _blocks(features: Floats) -> Floats:
    """In blocks of `BLOCK_ROWS`, the last filled up."""
    padded = np.zeros((-(-len(features) // BLOCK_ROWS), BLOCK_ROWS, features.shape[1]), np.float32)
    padded.reshape(-1, features.shape[1])[: len(features)] = features
    return padded


def write_maps(directory: Path, maps: StateMaps) -> None:
    """Write maps to a directory, which is there."""
    sizes = maps.sizes
    values = (
        *(sizes.hidden_size, sizes.layers, sizes.kv_heads, sizes.head_dim),
        sizes.auxiliary_size,
    )
    config = {
        "version": VERSION,
        "auxiliary": maps.auxiliary,
        **dict(zip(_SIZES, values, strict=True)),
        "after": list(maps.after),
        "trained": dict(maps.trained),
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_floats(directory / WEIGHTS_FILE, {"weights": maps.weights, "biases": maps.biases})


def read_maps(directory: Path) -> StateMaps:
    """Raises ModelError if a file is missing or damaged or of another version, or if a tensor is
    missing or has another shape than prediction.json implies."""
    path = directory / CONFIG_FILE
    try:
        config = read_object(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); name a directory that `ockham train "
            "kv-prediction` wrote."
        ) from None
    if config.get("version") != VERSION:
        raise ModelError(
            f"{path} is of version {config.get('version')!r}, and this Ockham reads version "
            f"{VERSION}: train it anew."
        )
    auxiliary, after = config.get("auxiliary"), config.get("after")
    if not isinstance(auxiliary, str) or not auxiliary:
        raise ModelError(f"{path} names no auxiliary model, but {auxiliary!r}.")
    for key in _SIZES:
        if type(config.get(key)) is not int or not 1 <= config[key] <= 1 << 20:
            raise ModelError(f"{key} of {path} is no size, but {config.get(key)!r}.")
    sizes = StateSizes(*(config[key] for key in _SIZES))
    if (
        not isinstance(after, list)
        or len(after) != sizes.layers
        or not all(type(n) is int and 0 <= n < 1000 for n in after)
        or after != sorted(after)
    ):
        raise ModelError(
            f"after of {path} must be the number of a layer for each of {sizes.layers}, ascending, "
            f"not {after!r}."
        )
    found = FoundTensors(directory / WEIGHTS_FILE)
    width = 2 * sizes.kv_heads * sizes.head_dim
    weights = found.take("weights", (sizes.layers, 2 * sizes.auxiliary_size, width))
    biases = found.take("biases", (sizes.layers, width))
    found.check_all_used()
    trained = config.get("trained") or {}
    return StateMaps(sizes, auxiliary, tuple(after), weights, biases, trained)
