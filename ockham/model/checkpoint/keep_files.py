"""What `ockham train keep` writes: a directory with `keep.json`, which says by which rule and for
which model it is, and `keep.safetensors`.

The *input* of a layer is the residual stream before it, each row divided by its root mean square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Bools, Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.found_tensors import FoundTensors
from ockham.model.files.untrusted import read_object

CONFIG_FILE, WEIGHTS_FILE = "keep.json", "keep.safetensors"
VERSION = 1
SHARES = 100
"""Quantiles are of 0 to so many hundredths."""
LEAST_SQUARE = 1e-6


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The model that something was trained for, as far as its sizes tell it."""

    hidden_size: int
    layers: int
    kv_heads: int

    def describe(self) -> str:
        return (
            f"hidden size {self.hidden_size}, {self.layers} layers and {self.kv_heads} key-value "
            "heads each"
        )


@dataclass(frozen=True, slots=True)
class KeepHeads:
    """Of each of L layers, a score for each of its H key-value heads, from the layer's input x (d):

        weights x + biases, or
        weights silu(inner x + inner_biases) + biases

    with the arrays of the layer. The higher the score, the more a later row may look at the token.
    """

    rule: str
    sizes: ModelSizes
    weights: Floats
    """(L, H, d), or (L, H, m)"""
    biases: Floats
    """(L, H)"""
    inner: Floats | None
    """(L, m, d)"""
    inner_biases: Floats | None
    """(L, m)"""
    quantiles: Floats
    """(101,) the scores below which 0%, 1%, ... 100% of all scores of held-out text lie."""
    trained: Mapping[str, Any]

    def threshold(self, share: float) -> float:
        """The score that so large a share of held-out text reaches."""
        at = (1.0 - share) * SHARES
        return float(np.interp(at, np.arange(SHARES + 1), self.quantiles))


@dataclass(frozen=True, slots=True)
class HeadAlphas:
    """Of each of L layers, how much each of its H key-value heads needs attention to the whole of a
    text, from 0 (its beginning and its latest tokens are enough) to 1."""

    rule: str
    sizes: ModelSizes
    alphas: Floats
    """(L, H)"""
    trained: Mapping[str, Any]

    def lowest(self, share: float, layers: Sequence[int]) -> Bools:
        """(L, H): which heads are of the share of the layers' heads, rounded, that needs it least.
        Of equal ones, those of later layers need it more."""
        chosen = sorted(layers)
        own = self.alphas[chosen]
        lowest = np.zeros(own.size, np.bool_)
        lowest[np.argsort(own, axis=None, kind="stable")[: round(share * own.size)]] = True
        found = np.zeros(self.alphas.shape, np.bool_)
        found[chosen] = lowest.reshape(own.shape)
        return found


def normalised(x: Floats) -> Floats:
    """Rows (n, d) divided by their root mean square."""
    squares = np.square(x).mean(axis=-1, keepdims=True)
    found: Floats = (x / np.sqrt(squares + np.float32(LEAST_SQUARE))).astype(np.float32, copy=False)
    return found


def read_heads(directory: Path) -> KeepHeads:
    """Raises ModelError if a file is missing or damaged, of another version or of no rule, or if a
    tensor is missing or has another shape than keep.json implies."""
    config = _read_config(directory)
    rule, sizes = config["rule"], _sizes(config, directory)
    found = FoundTensors(directory / WEIGHTS_FILE)
    layers, heads, width = sizes.layers, sizes.kv_heads, sizes.hidden_size
    inner = inner_biases = None
    if "inner_biases" in found.tensors:
        middle = found.tensors["inner_biases"].shape[-1]
        inner = found.take("inner", (layers, middle, width))
        inner_biases = found.take("inner_biases", (layers, middle))
        width = middle
    weights = found.take("weights", (layers, heads, width))
    biases = found.take("biases", (layers, heads))
    quantiles = found.take("quantiles", (SHARES + 1,))
    found.check_all_used()
    trained = config.get("trained") or {}
    return KeepHeads(rule, sizes, weights, biases, inner, inner_biases, quantiles, trained)


def rule_of(directory: Path) -> str:
    """The rule for which a directory was written. Raises ModelError as `read_heads` does."""
    rule: str = _read_config(directory)["rule"]
    return rule


def read_alphas(directory: Path) -> HeadAlphas:
    """Raises ModelError as `read_heads` does, and for a value that is not from 0 to 1."""
    config = _read_config(directory)
    sizes = _sizes(config, directory)
    found = FoundTensors(directory / WEIGHTS_FILE)
    alphas = found.take("alphas", (sizes.layers, sizes.kv_heads))
    found.check_all_used()
    if alphas.min() < 0.0 or alphas.max() > 1.0:
        raise ModelError(
            f"the alphas of {directory / WEIGHTS_FILE} reach from {alphas.min():g} to "
            f"{alphas.max():g}, where all must be from 0 to 1: train them anew."
        )
    return HeadAlphas(config["rule"], sizes, alphas, config.get("trained") or {})


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    try:
        config = read_object(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); name a directory that `ockham train keep` "
            "wrote."
        ) from None
    if config.get("version") != VERSION or not isinstance(config.get("rule"), str):
        raise ModelError(
            f"{path} is of version {config.get('version')!r} and the rule {config.get('rule')!r}, "
            f"and this Ockham reads version {VERSION} of a rule that it names: train it anew."
        )
    return config


def _sizes(config: Mapping[str, Any], directory: Path) -> ModelSizes:
    found = []
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads"):
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise ModelError(f"{key} of {directory / CONFIG_FILE} is no size, but {value!r}.")
        found.append(value)
    return ModelSizes(*found)
