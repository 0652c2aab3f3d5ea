"""What `ockham draft train` writes for drafters that share the target's weights.

A directory holds `draft.json`, which says of which method and for which target it is, and
`draft.safetensors`. *Hidden states* are the target's residual stream as it stands after a layer,
before the final norm: h_L after the last of L layers, h_k after the first k. The target's own final
norm and output head turn such a state into logits. Beside a draft model's checkpoint may stand an
`acceptance.safetensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.found_tensors import FoundTensors
from ockham.model.files.untrusted import read_object

CONFIG_FILE = "draft.json"
WEIGHTS_FILE = "draft.safetensors"
ACCEPTANCE_FILE = "acceptance.safetensors"
VERSION = 1
MOST_OFFSETS = 64
"""Most heads, or prompt tokens, of a drafter."""


@dataclass(frozen=True, slots=True)
class MedusaHeads:
    """K heads on the last hidden state (Medusa, arXiv:2401.10774, paper 160).

    With x = h_L + silu(weights[i] h_L + biases[i]), head i at position t foretells token t + 2 + i;
    the target's own head foretells t + 1.
    """

    weights: Floats
    """(K, d, d)"""
    biases: Floats
    """(K, d)"""

    @property
    def count(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """K inputs of the residual stream that stand after a token at position t, at t + 1 to t + K,
    where a token's embedding would (Parallel Prompt Decoding, arXiv:2405.18628, paper 65). Each
    sees all before it; through the target and its head, number i foretells token t + 2 + i."""

    embeddings: Floats
    """(K, d)"""

    @property
    def count(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """The target's first `layers` layers and a correction (M2R2, arXiv:2502.02040, paper 128):
    x = h_k + silu(weight h_k + bias) foretells token t + 1. Of zeros it is the plain exit."""

    layers: int
    weight: Floats
    """(d, d)"""
    bias: Floats
    """(d,)"""


@dataclass(frozen=True, slots=True)
class AcceptanceHead:
    """The chance that a draft model's token is accepted if all before it were: sigmoid(out_weight
    silu(weight h + bias) + out_bias), with h the draft model's last hidden state in the row that
    proposed the token (SpecDec++, arXiv:2405.19715, paper 101)."""

    weight: Floats
    """(m, d'), d' the draft model's hidden size"""
    bias: Floats
    """(m,)"""
    out_weight: Floats
    """(m,)"""
    out_bias: float

    def chance(self, hidden: Floats) -> float:
        """What it says of one such state, (d',)."""
        inner = self.weight @ hidden + self.bias
        inner = inner / (1.0 + np.exp(-np.clip(inner, -80.0, 80.0)))
        score = float(self.out_weight @ inner) + self.out_bias
        return 1.0 / (1.0 + math.exp(-min(max(score, -80.0), 80.0)))


Parts = MedusaHeads | PromptTokens | EarlyExit


@dataclass(frozen=True, slots=True)
class TrainedDrafter:
    """A drafter's weights in fp32, the sizes of the target that they were trained for, and what is
    told of their training."""

    directory: Path
    method: str
    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    parts: Parts
    trained: Mapping[str, Any]

    def check_target(self, hidden_size: int, vocab_size: int, num_hidden_layers: int) -> None:
        """Raises ModelError if it was trained for a target of other sizes."""
        own = (self.hidden_size, self.vocab_size, self.num_hidden_layers)
        if own != (hidden_size, vocab_size, num_hidden_layers):
            raise ModelError(
                f"the drafter {self.directory} was trained for a model of hidden size {own[0]}, "
                f"{own[1]} tokens and {own[2]} layers, and this one has {hidden_size}, "
                f"{vocab_size} and {num_hidden_layers}: train one for it with `ockham draft train`."
            )


def is_drafter(directory: Path) -> bool:
    """Whether a directory holds such a drafter, and not a model."""
    return (directory / CONFIG_FILE).exists()


def drafter_method(directory: Path) -> str:
    """The method that a drafter is of. Raises ModelError if its draft.json cannot be read."""
    return str(read_config(directory / CONFIG_FILE).get("method"))


def read_drafter(directory: Path) -> TrainedDrafter:
    """Read a directory of `ockham draft train` (any method but draft_model).

    Raises ModelError if a file is missing or damaged, of another version or an unknown method, or
    if a tensor is missing, has another shape than draft.json implies, or holds no finite number.
    """
    config = read_config(directory / CONFIG_FILE)
    method = config.get("method")
    build = _PARTS.get(method) if isinstance(method, str) else None
    if build is None:
        raise ModelError(
            f"{directory / CONFIG_FILE} names the method {method!r}; known are {', '.join(_PARTS)}."
        )
    hidden, vocabulary, layers = (_size(config, key, directory) for key in _SIZES)
    found = FoundTensors(directory / WEIGHTS_FILE)
    parts = build(found, hidden, config)
    found.check_all_used()
    trained = config.get("trained") or {}
    return TrainedDrafter(directory, str(method), hidden, vocabulary, layers, parts, trained)


def read_acceptance(directory: Path, hidden_size: int) -> AcceptanceHead | None:
    """The acceptance head beside a draft model of so large a hidden size; None if it has none.
    Raises ModelError if it is damaged, or of another hidden size."""
    path = directory / ACCEPTANCE_FILE
    if not path.exists():
        return None
    found = FoundTensors(path)
    rows = len(found.tensors["weight"]) if "weight" in found.tensors else 0
    head = AcceptanceHead(
        found.take("weight", (rows, hidden_size)),
        found.take("bias", (rows,)),
        found.take("out.weight", (1, rows))[0],
        float(found.take("out.bias", (1,))[0]),
    )
    found.check_all_used()
    return head


_SIZES = ("hidden_size", "vocab_size", "num_hidden_layers")


def read_config(path: Path) -> dict[str, Any]:
    """What a draft.json says. Raises ModelError if it is damaged, or of another version."""
    try:
        config = read_object(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); name a directory that `ockham draft train` "
            "wrote."
        ) from None
    if config.get("version") != VERSION:
        raise ModelError(
            f"{path} is of version {config.get('version')!r}, and this Ockham reads {VERSION}: "
            "train the drafter with it."
        )
    return config


def _size(config: Mapping[str, Any], key: str, directory: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ModelError(f"{key} of {directory / CONFIG_FILE} is no size, but {value!r}.")
    return value


def _medusa(found: FoundTensors, hidden: int, config: Mapping[str, Any]) -> MedusaHeads:
    count = 0
    while f"heads.{count}.weight" in found.tensors:
        count += 1
    _check_count(count, found.path)
    weights = [found.take(f"heads.{i}.weight", (hidden, hidden)) for i in range(count)]
    biases = [found.take(f"heads.{i}.bias", (hidden,)) for i in range(count)]
    return MedusaHeads(np.stack(weights), np.stack(biases))


def _prompt_tokens(found: FoundTensors, hidden: int, config: Mapping[str, Any]) -> PromptTokens:
    count = len(found.tensors["embeddings"]) if "embeddings" in found.tensors else 1
    _check_count(count, found.path)
    return PromptTokens(found.take("embeddings", (count, hidden)))


def _early_exit(found: FoundTensors, hidden: int, config: Mapping[str, Any]) -> EarlyExit:
    layers, most = config.get("layers"), config["num_hidden_layers"]
    if type(layers) is not int or not 1 <= layers < most:
        raise ModelError(
            f"layers of {found.path.parent / CONFIG_FILE} must lie in [1, {most - 1}], got "
            f"{layers!r}."
        )
    return EarlyExit(layers, found.take("weight", (hidden, hidden)), found.take("bias", (hidden,)))


def _check_count(count: int, path: Path) -> None:
    if not 1 <= count <= MOST_OFFSETS:
        raise ModelError(
            f"{path} foretells {count} tokens; a drafter foretells 1 to {MOST_OFFSETS}."
        )


_PARTS: dict[str, Callable[[FoundTensors, int, Mapping[str, Any]], Parts]] = {
    "medusa": _medusa,
    "prompt_tokens": _prompt_tokens,
    "early_exit": _early_exit,
}
