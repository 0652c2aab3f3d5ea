"""What `ockham train gate` writes: a directory with `gate.json`, which says for which model it is,
and `gate.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ModelError
from ockham.core.sparing import ALL, SKIPPED, RoutingRule
from ockham.model.checkpoint.found_tensors import FoundTensors
from ockham.model.files.safetensors import write_floats
from ockham.model.files.untrusted import read_object

CONFIG_FILE, WEIGHTS_FILE = "gate.json", "gate.safetensors"
VERSION = 1


@dataclass(frozen=True, slots=True)
class WidthRouters:
    """Of each of L layers, a score for each of C choices from the layer's residual stream x (d)
    before the feed-forward: weights . x / rms(x) + biases. A choice runs so many of the first
    neurons, 0 for none."""

    widths: Ints  # (L, C)
    weights: Floats  # (L, C, d)
    biases: Floats  # (L, C)
    trained: Mapping[str, Any]

    def rule(self, neurons: Sequence[int], price: float = 0.0) -> RoutingRule:
        """The rule by which rows of a model choose whose feed-forwards have so many neurons, where
        `price` times the share of the neurons is taken off each choice's score. Raises ValueError
        with a sentence where the routers are of another model."""
        whole = np.array(neurons, np.int32)[:, None]
        if self.widths.shape[0] != len(whole) or (self.widths > whole).any():
            raise ValueError(
                f"the routers are for {self.widths.shape[0]} layers of up to {self.widths.max()} "
                f"neurons, and the model has {len(whole)} of up to {whole.max()}; train some for "
                "it."
            )
        biases = self.biases - price * self.widths / np.maximum(1, whole)
        widths = np.where(self.widths == 0, SKIPPED, self.widths)
        widths = np.where(whole == 0, ALL, widths)
        return RoutingRule(widths.astype(np.int32), self.weights, biases.astype(np.float32), 0)


def write_routers(directory: Path, routers: WidthRouters) -> None:
    """Write routers into a directory that is there."""
    layers, choices, hidden = routers.weights.shape
    config = {
        "version": VERSION,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "choices": choices,
        "trained": dict(routers.trained),
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    tensors = {
        "widths": routers.widths.astype(np.float32),
        "weights": routers.weights,
        "biases": routers.biases,
    }
    write_floats(directory / WEIGHTS_FILE, tensors)


def read_routers(directory: Path) -> WidthRouters:
    """Raises ModelError if a file is missing or damaged, of another version, or if a tensor is
    missing or has another shape or other values than there can be."""
    path = directory / CONFIG_FILE
    try:
        config = read_object(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); name a directory that `ockham train gate` "
            "wrote."
        ) from None
    if config.get("version") != VERSION:
        raise ModelError(
            f"{path} is of version {config.get('version')!r}, and this Ockham reads version "
            f"{VERSION}: train it anew."
        )
    layers, choices, hidden = (
        _size(config, name, path) for name in ("num_hidden_layers", "choices", "hidden_size")
    )
    found = FoundTensors(directory / WEIGHTS_FILE)
    widths = found.take("widths", (layers, choices))
    weights = found.take("weights", (layers, choices, hidden))
    biases = found.take("biases", (layers, choices))
    found.check_all_used()
    if widths.min() < 0 or widths.max() > 1 << 24 or (widths != np.round(widths)).any():
        raise ModelError(f"the widths of {directory / WEIGHTS_FILE} are no numbers of neurons.")
    return WidthRouters(widths.astype(np.int32), weights, biases, config.get("trained") or {})


def _size(config: Mapping[str, Any], name: str, path: Path) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise ModelError(f"{name} of {path} is no size, but {value!r}.")
    return value
