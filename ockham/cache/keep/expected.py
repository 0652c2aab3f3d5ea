"""Keep the cells that later queries are expected to look at, and that say most."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import ClassVar

import numpy as np

from ockham.cache.keep import budgets
from ockham.cache.keep.budgets import MOST, READ, Budget, BudgetAsk, BudgetKeeping, BudgetOptions
from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import register
from ockham.core.seams import (
    NOTHING,
    HeldCells,
    Keeping,
    KeptText,
    LayerAttention,
    OwnRows,
    Seen,
    Wants,
)

MOST_AHEAD = 1 << 16
FOLDED = 64
"""Queries are added to the sums so many at a time, whatever the chunks were that they came in."""


class ExpectedOptions(BudgetOptions):
    """A budget, of which `window` cells are the latest. What decides is the attention that queries
    of the next `ahead` places are expected to give; every query of the text counts, or one in
    `every`."""

    window: int = 32
    ahead: int = 512
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.ahead, self.every):
            raise ConfigError(wrong[1])


class ExpectedAsk(BudgetAsk, kw_only=True, frozen=True):
    """The same, of one request."""

    window: int | None = None
    ahead: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := _wrong(self.ahead, self.every):
            raise InvalidRequest(wrong[1], wrong[0])


def _wrong(ahead: int | None, every: int | None) -> tuple[str, str] | None:
    """Which of the settings is wrong, and how, in a sentence."""
    if ahead is not None and not 1 <= ahead <= MOST_AHEAD:
        return "ahead", f"ahead must be from 1 to {MOST_AHEAD} places, got {ahead}."
    if every is not None and not 1 <= every <= MOST:
        return "every", f"every must be from 1 to {MOST}, got {every}."
    return None


@register("keep", "expected", exact=False, books=("expected",), paper="arXiv:2510.00636")
class ExpectedAttention:
    """The cells stay that later queries are expected to attend to most, times the length of their
    values, each head's own.

    The queries of a head, before they are rotated, are spread about a mean much alike everywhere in
    a text. So the attention that a key will get can be told from the mean and the covariance of the
    queries so far, without a question (Expected Attention, Devoto et al. 2025, arXiv:2510.00636).
    The statistics are those of the text itself: nothing is trained, stored or measured when a model
    is loaded. Approximate; state is private to the request. Measured by `ockham techniques measure
    expected`.
    """

    name: ClassVar[str] = "expected"
    trial: ClassVar[dict[str, object]] = {"budget": 12, "sinks": 2, "window": 4, "block": 16}
    """An ask that drops cells of texts of a few dozen tokens."""
    Options: ClassVar[type[ExpectedOptions]] = ExpectedOptions
    Ask: ClassVar[type[ExpectedAsk]] = ExpectedAsk

    def __init__(self, options: ExpectedOptions) -> None:
        self._options = options

    def open(self, ask: ExpectedAsk, text: KeptText) -> Expecting:
        """See `Keep`."""
        given = budgets.settings(self._options, ask)
        budget = Budget.of(given, ask, text, given["window"])
        return Expecting(self.name, budget, text, given["ahead"], given["every"])


class Expecting(BudgetKeeping):
    """The cells of one sequence that its later queries are expected to look at."""

    def __init__(self, name: str, budget: Budget, text: KeptText, ahead: int, every: int) -> None:
        super().__init__(name, budget, text)
        self._ahead, self._every, self.reads = ahead, every, True
        self._queries: dict[int, Queries] = {}
        """Of each layer without a window, those of the tokens so far."""
        self._worth: dict[int, Doubles] = {}
        """Of each group that was read, what its cells are worth."""

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        if self.border(int(own.places[0])) is None:
            return NOTHING
        counts = (own.places >= self.budget.sinks) & (own.places % self._every == 0)
        rows = np.flatnonzero(counts).astype(np.int32)
        return Wants(queries=tuple(self._layers), rows=rows) if len(rows) else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        places = own.places[seen.rows]
        self._seen_until = int(places[-1]) + 1
        for layer, rotated in seen.queries.items():
            if layer not in self._queries:
                self._queries[layer] = Queries(self._text.layers[layer])
            self._queries[layer].add(rotated, places)

    def read(self, group: int, places: Ints, held: HeldCells) -> None:
        """See `Keeping`."""
        super().read(group, places, held)
        layers = self._text.groups[group].layers
        tokens = int(places[..., -1].max()) + 1
        if places.shape[-1] <= self.budget.cells or not all(e in self._queries for e in layers):
            self._worth.pop(group, None)
            return
        shape = (len(layers), self._text.groups[group].kv_heads, places.shape[-1])
        expected = [self._queries[layer].expected(tokens, self._ahead) for layer in layers]
        found, lengths = [], []
        for first in range(0, shape[2], READ):
            keys, values = held.read(first, min(first + READ, shape[2]))
            found.append(np.stack([e.logits(own) for e, own in zip(expected, keys, strict=True)]))
            lengths.append(np.linalg.norm(values.astype(np.float64), axis=-1))
        logits = np.concatenate(found, axis=-1)  # (layers, kv_heads, repeat, cells)
        gaps = np.broadcast_to(places < 0, shape)
        logits[np.broadcast_to(gaps[:, :, None], logits.shape)] = -np.inf
        logits -= logits.max(axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        shares = (logits / logits.sum(axis=-1, keepdims=True)).mean(axis=2)
        self._worth[group] = shares * np.concatenate(lengths, axis=-1)

    def worth(self, group: int, places: Ints, tokens: int) -> Doubles:
        if group in self._worth:
            return self._worth[group]
        of = self._text.groups[group]  # of a text without a query that counts, all are alike
        return np.zeros((len(of.layers), of.kv_heads, places.shape[-1]))

    def dropped(self, kept: Mapping[int, Ints], tokens: int) -> None:
        """See `Keeping`."""
        super().dropped(kept, tokens)
        self._worth = {}

    def fork(self, tokens: int) -> Keeping | None:
        """See `Keeping`."""
        twin = super().fork(tokens)
        if isinstance(twin, Expecting):
            twin._queries, twin._worth = deepcopy(self._queries), dict(self._worth)
        return twin

    def fresh(self) -> Keeping:
        """See `Keeping`."""
        twin = super().fresh()
        assert isinstance(twin, Expecting), "it is the twin of one"
        twin._queries, twin._worth = {}, {}
        return twin


class Queries:
    """The mean and the covariance of a layer's queries before they are rotated.

    Queries are added to the sums `FOLDED` at a time, in the order of the text, so that the sums
    have the same bits whatever the chunks were.
    """

    def __init__(self, layer: LayerAttention) -> None:
        self._layer = layer
        heads, width = layer.heads, layer.head_dim
        self._waiting = np.empty((FOLDED, heads, width), np.float32)
        self._added = 0
        self._sums: Doubles = np.zeros((heads, width))
        self._products: Doubles = np.zeros((heads, width, width))

    def __deepcopy__(self, memo: object) -> Queries:
        twin = Queries(self._layer)
        twin._waiting, twin._added = self._waiting.copy(), self._added
        twin._sums, twin._products = self._sums.copy(), self._products.copy()
        return twin

    def add(self, rotated: Floats, places: Ints) -> None:
        """Add queries (n, heads * head_dim) that stand in `places`."""
        plain = unrotated(self._layer, rotated.reshape(len(rotated), *self._sums.shape), places)
        done = 0
        while done < len(plain):
            at = self._added % FOLDED
            count = min(FOLDED - at, len(plain) - done)
            self._waiting[at : at + count] = plain[done : done + count]
            self._added += count
            done += count
            if self._added % FOLDED == 0:
                self._sums, self._products = self._folded(FOLDED)

    def _folded(self, count: int) -> tuple[Doubles, Doubles]:
        """The sums with the first `count` that wait."""
        rows = self._waiting[:count].astype(np.float64).swapaxes(0, 1)  # (heads, count, width)
        return self._sums + rows.sum(axis=1), self._products + rows.swapaxes(1, 2) @ rows

    def expected(self, tokens: int, ahead: int) -> ExpectedQueries:
        """What is expected of the queries in the `ahead` places from `tokens` on."""
        sums, products = self._folded(self._added % FOLDED)
        mean = sums / self._added
        covariance = products / self._added - mean[:, :, None] * mean[:, None, :]
        turn = mean_rotation(self._layer, np.arange(tokens, tokens + ahead, dtype=np.int32))
        scale = self._layer.scale
        return ExpectedQueries(scale * mean @ turn.T, 0.5 * scale**2 * (turn @ covariance @ turn.T))


class ExpectedQueries:
    """Queries that are spread normally: their mean (heads, width), times the scale of attention,
    and half their covariance (heads, width, width), times its square."""

    def __init__(self, mean: Doubles, half_covariance: Doubles) -> None:
        self.mean, self.half_covariance = mean, half_covariance

    def logits(self, keys: Floats) -> Doubles:
        """The logarithm of what is expected of exp(scale * q k) for each key (kv_heads, n, width):
        (kv_heads, heads / kv_heads, n). It is mean k + k covariance k / 2."""
        kv_heads, _, width = keys.shape
        means = self.mean.reshape(kv_heads, -1, width).astype(np.float32)
        halves = self.half_covariance.reshape(kv_heads, -1, width, width).astype(np.float32)
        found = np.empty((*means.shape[:2], keys.shape[1]))
        for head, own in enumerate(keys):
            for one, (mean, half) in enumerate(zip(means[head], halves[head], strict=True)):
                # Key by key: a product of so few rows is slower on several threads.
                turned = np.matmul(own[:, None, :], half)[:, 0] + mean
                found[head, one] = np.einsum("ij,ij->i", turned, own)
        return found


def unrotated(layer: LayerAttention, queries: Floats, places: Ints) -> Floats:
    """Queries (n, heads, width) as they were before the rotary embedding of their places."""
    if layer.inverse_frequencies is None:
        return queries
    angles = places.astype(np.float32)[:, None] * layer.inverse_frequencies
    cos = (np.cos(angles) / np.float32(layer.rotary_scale))[:, None]
    sin = (np.sin(angles) / np.float32(layer.rotary_scale))[:, None]
    half = angles.shape[1]
    first, second = queries[..., :half], queries[..., half : 2 * half]
    rest = queries[..., 2 * half :]
    return np.concatenate([first * cos + second * sin, second * cos - first * sin, rest], axis=-1)


def mean_rotation(layer: LayerAttention, places: Ints) -> Doubles:
    """The mean of the rotary embedding's matrices (width, width) over `places`, with its scale."""
    turn: Doubles = np.eye(layer.head_dim)
    if layer.inverse_frequencies is None:
        return turn
    angles = places.astype(np.float32)[:, None] * layer.inverse_frequencies
    cos = np.cos(angles).mean(axis=0, dtype=np.float64) * layer.rotary_scale
    sin = np.sin(angles).mean(axis=0, dtype=np.float64) * layer.rotary_scale
    half = len(cos)
    first = np.arange(half)
    turn[first, first] = turn[first + half, first + half] = cos
    turn[first, first + half], turn[first + half, first] = -sin, sin
    return turn
