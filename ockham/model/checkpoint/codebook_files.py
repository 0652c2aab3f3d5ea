"""A file of codebooks of a model's keys.

It is a safetensors file. For each of L layers and H key-value heads it has 256 `centroids`
(L, H, 256, d) and the `metrics` (L, H, d, d) by which they were fitted; `layers` (L,) are the
numbers of the layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.found_tensors import FoundTensors

BOOK_SIZE = 256
"""Centroids of a head: a code is one byte."""


@dataclass(frozen=True, slots=True)
class Codebooks:
    """Of each of L layers and H heads: a key k belongs to the first centroid c for which
    c M k - c M c / 2 is largest, with the metric M of the head."""

    layers: tuple[int, ...]
    centroids: Floats
    metrics: Floats

    @property
    def kv_heads(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def head_dim(self) -> int:
        return int(self.centroids.shape[3])

    def entries(self, layers: Sequence[int]) -> Floats:
        """Of some of the layers (layers, H, 256, 2 d + 1), as `GroupLayout.books` has them."""
        at = [self.layers.index(layer) for layer in layers]
        centroids, metrics = self.centroids[at], self.metrics[at]
        directions = centroids @ metrics
        offsets = (directions * centroids).sum(axis=-1, keepdims=True) / np.float32(2)
        found: Floats = np.concatenate([centroids, directions, offsets], axis=-1)
        return found

    def describe(self) -> str:
        """The model that they are of, as far as its sizes tell it."""
        return (
            f"{len(self.layers)} layers without a window, with {self.kv_heads} key-value heads of "
            f"{self.head_dim} elements"
        )


def read_codebooks(path: Path) -> Codebooks:
    """Raises ModelError for a file that is missing or damaged, or that holds no codebooks."""
    if not path.exists():
        raise ModelError(
            f"there is no file {path}; write codebooks of the model's keys with `ockham calibrate`."
        )
    found = FoundTensors(path)
    centroids = found.tensors.get("centroids")
    if centroids is None or centroids.ndim != 4 or centroids.shape[2] != BOOK_SIZE:
        raise ModelError(
            f"{path} holds no codebooks of keys; name a file that `ockham calibrate` wrote."
        )
    layers, heads, _, width = centroids.shape
    numbers = found.take("layers", (layers,))
    books = Codebooks(
        tuple(int(number) for number in numbers),
        found.take("centroids", centroids.shape),
        found.take("metrics", (layers, heads, width, width)),
    )
    found.check_all_used()
    return books


def packed_codebooks(books: Codebooks, about: Mapping[str, Any]) -> bytes:
    """The file. `about` says what they were fitted to, for people."""
    tensors = {
        "layers": np.asarray(books.layers, np.float32),
        "centroids": np.ascontiguousarray(books.centroids, np.float32),
        "metrics": np.ascontiguousarray(books.metrics, np.float32),
    }
    header: dict[str, Any] = {"__metadata__": {key: str(value) for key, value in about.items()}}
    at = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": values.shape,
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return b"".join(
        [len(head).to_bytes(8, "little"), head, *(values.tobytes() for values in tensors.values())]
    )
