"""The rows of a query block that choose together which blocks of keys they visit, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.choices import BY_HEAD, LATEST, LINES, MEANS, Choice, Choices
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.reference.views import View


def whole_blocks(
    choices: Choices, index: int, view: View, keys_seen: Ints
) -> Iterator[tuple[int, int, Choice]]:
    """The query blocks of a view, all of whose rows are in it and choose in the group's layer
    `index`: (first row, number of the block, choice)."""
    row = view.start
    while row + BLOCK_KEYS <= view.stop:
        seen = int(keys_seen[row])
        choice = choices.of(row, index, seen)
        rows = np.arange(row, row + BLOCK_KEYS)
        number = seen // BLOCK_KEYS
        if (
            choice is not None
            and choice.together
            and seen % BLOCK_KEYS == 1
            and number >= choice.sinks + choice.local
            and view.extra is None
            and bool((keys_seen[rows] == rows - row + seen).all())
            and choices.of(int(rows[-1]), index, seen + BLOCK_KEYS - 1) == choice
        ):
            yield row, number, choice
            row += BLOCK_KEYS
        else:
            row += 1


def block_weights(stride: int, queries: Floats, keys: Floats) -> Doubles:
    """What each block of keys (blocks * 64, head_dim) weighs for the queries of the last of them
    (64, heads, head_dim), which are scaled: (blocks,). See `core.choices.Choice`."""
    count, dim = BLOCK_KEYS // stride, keys.shape[-1]
    turned = queries.reshape(count, stride, -1, dim)[:, ::-1]
    of_strides = keys.reshape(-1, stride, dim)
    scores = np.einsum("ithd,jtd->hij", turned, of_strides, optimize=True) / np.float32(stride)
    last = len(of_strides) - count + np.arange(count)
    scores[:, np.arange(len(of_strides)) > last[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True), dtype=np.float64)
    weights /= weights.sum(axis=-1, keepdims=True)
    found: Doubles = weights.sum(axis=(0, 1)).reshape(-1, count).sum(axis=1)
    return found


def line_weights(stride: int, queries: Floats, keys: Floats) -> Doubles:
    """The probabilities of each `stride`-th query for the keys of each block, summed over those
    queries and the heads; arguments as of `block_weights`."""
    own = np.arange(stride - 1, BLOCK_KEYS, stride)
    scores = np.einsum("ihd,jd->hij", queries[own], keys, optimize=True)
    seen = len(keys) - BLOCK_KEYS + own + 1
    scores[:, np.arange(len(keys)) >= seen[:, None]] = -np.inf
    found: Doubles = _softmax(scores).sum(axis=(0, 1)).reshape(-1, BLOCK_KEYS).sum(axis=1)
    return found


def mean_weights(queries: Floats, keys: Floats) -> Doubles:
    """The softmax over blocks of the score of the mean query with their mean keys, summed over the
    heads; arguments as of `block_weights`."""
    scores = queries.mean(axis=0) @ keys.reshape(-1, BLOCK_KEYS, keys.shape[-1]).mean(axis=1).T
    found: Doubles = _softmax(scores).sum(axis=0)
    return found


def _softmax(scores: Floats) -> Doubles:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True), dtype=np.float64)
    found: Doubles = weights / weights.sum(axis=-1, keepdims=True)
    return found


@dataclass(frozen=True, slots=True)
class HeadRule:
    """How one key-value head chooses; `rule` is None for the sums over antidiagonals."""

    choice: Choice
    rule: int | None
    share: float

    @classmethod
    def of(cls, choices: Choices, row: int, choice: Choice, layer: int, head: int) -> HeadRule:
        """That of a head of the group's layer `layer`, with which a row chooses."""
        if choice.chooser != BY_HEAD:
            return cls(choice, None, choice.share)
        return cls(choice, *choices.rule(row, layer, head))

    def most(self, blocks: int) -> int:
        """How many of so many blocks are visited at most, but for those that all visit."""
        return int(np.ceil(self.share * blocks))

    def reads(self, blocks: int) -> bool:
        """Whether keys are read to choose among so many blocks."""
        forced = self.choice.sinks + self.choice.local
        return self.rule is None or (self.rule != LATEST and forced < self.most(blocks) < blocks)

    @property
    def rows_per_product(self) -> int:
        """Of how many queries one is multiplied with each key."""
        return BLOCK_KEYS if self.rule == MEANS else self.choice.stride

    def weights(self, queries: Floats, keys: Floats) -> Doubles:
        """What each block weighs; arguments as of `block_weights`."""
        count = len(keys) // BLOCK_KEYS
        if not self.reads(count):
            return np.arange(count, dtype=np.float64)
        if self.rule == LINES:
            return line_weights(self.choice.stride, queries, keys)
        if self.rule == MEANS:
            return mean_weights(queries, keys)
        return block_weights(self.choice.stride, queries, keys)


def together_blocks(rule: HeadRule, queries: Floats, keys: Floats) -> Ints:
    """The blocks that the rows of the last query block visit with one key-value head: queries (64,
    heads, head_dim), scaled, of keys (blocks * 64, head_dim)."""
    choice, weights = rule.choice, rule.weights(queries, keys)
    count = len(weights)
    forced = np.r_[np.arange(choice.sinks), np.arange(count - choice.local, count)]
    others = np.setdiff1d(np.arange(count), forced)
    others = others[np.argsort(-weights[others], kind="stable")]
    wanted = len(others)
    if rule.rule is None:
        before = weights[forced].sum() + np.cumsum(weights[others]) - weights[others]
        wanted = int((before < choice.threshold * weights.sum()).sum())
    room = max(0, rule.most(count) - len(forced))
    blocks: Ints = np.sort(np.r_[forced, others[: min(wanted, room)]]).astype(np.int32)
    return blocks
