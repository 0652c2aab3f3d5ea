"""Linear maps from a small model's residual stream to a larger one's keys and values, by ridge
regression over texts that both read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Target
from ockham.engine.runner.small_model import SmallModel
from ockham.kernels.ops import AttentionInput
from ockham.kernels.reference.formulas import rotate, rotation
from ockham.kernels.reference.planes import sides
from ockham.model.checkpoint.prediction_files import (
    StateMaps,
    StateSizes,
    assigned,
    features_of,
)
from ockham.model.loading import plan_model

PENALTY = 10.0
"""Of the regression, in units of one token."""
HELD_OUT_TEXTS = 8
"""One text in so many only measures."""


_HeldOut = tuple[list[Floats], list[Floats]]
"""Of a text and each layer, the features and the keys and values."""


@dataclass(frozen=True, slots=True)
class FittedMaps:
    """Maps, and the share of the variance of held-out keys and values that they explain: of all
    layers together, and of each its keys and its values."""

    maps: StateMaps
    explained: float
    by_layer: list[tuple[float, float]]
    held_out_tokens: int


def fit_maps(
    base: str,
    auxiliary: str,
    texts: Sequence[Sequence[int]],
    tell: Callable[[str], None] = lambda line: None,
) -> FittedMaps:
    """Let both models read the texts (token ids), and fit the one's state to the other's.

    Raises ConfigError for fewer than `HELD_OUT_TEXTS` texts or models of different vocabularies,
    and ModelError for a base model whose layers differ in their keys and values, or have windows.
    """
    if len(texts) < HELD_OUT_TEXTS:
        raise ConfigError(
            f"maps are fitted to at least {HELD_OUT_TEXTS} texts, and there are {len(texts)}; give "
            "more."
        )
    longest = max(map(len, texts))
    readers = [_Reader(name, longest) for name in (base, auxiliary)]
    large, small = readers
    if large.vocabulary != small.vocabulary:
        raise ConfigError(
            f"{auxiliary} has {small.vocabulary} tokens, and {base} has "
            f"{large.vocabulary}: their ids cannot mean the same. Choose an auxiliary model "
            "with the same tokenizer."
        )
    sizes = large.sizes(base, small.model.hidden_size)
    after = assigned(sizes.layers, small.layers)
    width = 2 * sizes.kv_heads * sizes.head_dim
    count = 2 * sizes.auxiliary_size + 1
    squares: dict[int, Doubles] = {source: np.zeros((count, count)) for source in set(after)}
    products: Doubles = np.zeros((sizes.layers, count, width))
    held_out: list[_HeldOut] = []
    for number, text in enumerate(texts):
        states = small.states(text, (-1, *sorted(set(after))))
        features = {source: _with_one(features_of(states, source)) for source in set(after)}
        wanted = large.keys_and_values(text)
        tell(f"read {number + 1} of {len(texts)} texts")
        if number % HELD_OUT_TEXTS == HELD_OUT_TEXTS - 1:
            held_out.append(([features[source] for source in after], wanted))
            continue
        for source, wide in features.items():
            squares[source] += wide.T.astype(np.float64) @ wide
        for layer, (source, each) in enumerate(zip(after, wanted, strict=True)):
            products[layer] += features[source].T.astype(np.float64) @ each
    penalty = PENALTY * np.eye(count)
    penalty[-1, -1] = 0.0
    found = np.stack(
        [
            np.linalg.solve(squares[source] + penalty, each)
            for source, each in zip(after, products, strict=True)
        ]
    )
    weights = np.ascontiguousarray(found[:, :-1], np.float32)
    biases = np.ascontiguousarray(found[:, -1], np.float32)
    explained, by_layer = _explained(held_out, found.astype(np.float32))
    tokens = sum(len(wanted[0]) for _, wanted in held_out)
    trained = {
        "base": base,
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        "explained": round(explained, 3),
    }
    maps = StateMaps(sizes, auxiliary, after, weights, biases, trained)
    return FittedMaps(maps, explained, by_layer, tokens)


def _with_one(features: Floats) -> Floats:
    found: Floats = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    return found


def _explained(
    held_out: Sequence[_HeldOut], maps: Floats
) -> tuple[float, list[tuple[float, float]]]:
    """The share of the variance that is explained: of all, and of each layer's keys and values."""
    left, spread = [], []
    for layer, of_layer in enumerate(maps):
        wanted = np.concatenate([each[layer] for _, each in held_out]).astype(np.float64)
        foretold = np.concatenate([features[layer] @ of_layer for features, _ in held_out])
        parts = wanted.shape[1] // 2
        errors = np.square(wanted - foretold).sum(axis=0)
        spreads = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
        left.append((errors[:parts].sum(), errors[parts:].sum()))
        spread.append((spreads[:parts].sum(), spreads[parts:].sum()))
    shares = [
        (float(1 - a / b), float(1 - c / d)) for (a, c), (b, d) in zip(left, spread, strict=True)
    ]
    return float(1 - np.sum(left) / np.sum(spread)), shares


class _Reader:
    """A model that reads one text after another."""

    def __init__(self, name: str, longest: int) -> None:
        probed = plan_model(EngineConfig(model=name, max_model_len=1, max_num_seqs=1))
        probed.source.close()
        self.vocabulary = probed.description.vocab_size
        self.model = SmallModel(name, Target(self.vocabulary, longest, 1, longest))
        self._inputs = {
            op.layer: op for op in self.model.program.ops if isinstance(op, AttentionInput)
        }
        self.layers = len(self._inputs)

    def sizes(self, name: str, auxiliary_size: int) -> StateSizes:
        """Raises ModelError for a model whose layers are not all alike."""
        shapes = {(op.kv_heads, op.head_dim) for op in self._inputs.values()}
        if len(shapes) != 1 or any(layout.window for layout in self.model.state.groups):
            raise ModelError(
                f"{name} has layers with different keys and values, or with windows; its state "
                "cannot be predicted."
            )
        [(kv_heads, head_dim)] = shapes
        return StateSizes(self.model.hidden_size, self.layers, kv_heads, head_dim, auxiliary_size)

    def states(self, tokens: Sequence[int], layers: Sequence[int]) -> dict[int, Floats]:
        """The residual stream after each of the layers: (tokens, hidden_size)."""
        view = self.model.open()
        try:
            return self.model.states(view, tokens, layers)
        finally:
            self.model.release(view)

    def keys_and_values(self, tokens: Sequence[int]) -> list[Floats]:
        """Of each layer the keys, turned back to position 0, and then the values: (tokens, 2 *
        kv_heads * head_dim)."""
        view = self.model.open()
        positions = np.arange(len(tokens), dtype=np.int32)
        try:
            self.model.states(view, tokens, ())
            found: dict[int, Floats] = {}
            for group, layout in enumerate(self.model.state.groups):
                slots = self.model.state.slots(view, group, positions)
                stored = self.model.state.planes.read(group, slots)
                for layer, of_layer in zip(layout.layers, stored, strict=True):
                    keys, values = (
                        side.codec.widen(np.ascontiguousarray(side.stored))
                        for side in sides(of_layer, layout.spec.planes)
                    )
                    found[layer] = np.concatenate(
                        [self._turned_back(layer, keys, positions), values], axis=1
                    ).reshape(len(tokens), -1)
        finally:
            self.model.release(view)
        return [found[layer] for layer in sorted(found)]

    def _turned_back(self, layer: int, keys: Floats, positions: Ints) -> Floats:
        rope = self._inputs[layer].rope
        if rope is None:
            return keys
        cos, sin = rotation(rope, positions)
        turned = np.array(keys, np.float32)
        rotate(turned, cos / np.float32(rope.scale**2), -sin / np.float32(rope.scale**2))
        return turned
