"""Fitting codebooks to the keys of heads, so that scores differ least (paper 179)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ockham.core.arrays import Doubles, Floats, Longs
from ockham.core.errors import ConfigError
from ockham.core.seams import QueryBlock
from ockham.model.checkpoint.codebook_files import BOOK_SIZE, Codebooks, packed_codebooks

ROUNDS = 10
MOST_KEYS = 16_384
"""Of one head, which centroids are fitted to: of more, a sample drawn as they come."""
LEAST_KEYS = 4 * BOOK_SIZE
RIDGE = 1e-3
"""What is added to each direction's mean square of queries, as a share of the mean of all."""


class _Head:
    """What was seen of one key-value head."""

    def __init__(self, width: int, rng: np.random.Generator) -> None:
        self._keys: list[Floats] = []
        self._count = 0
        """Keys of all texts."""
        self._rng = rng
        self.seen = 0
        """Keys of the text that is read."""
        self.squares: Doubles = np.zeros((width, width))
        self.queries = 0

    def saw(self, queries: Floats, keys: Floats) -> None:
        """Queries (n, width), and the keys (m, width) that the last of them sees."""
        self.squares += queries.T.astype(np.float64) @ queries
        self.queries += len(queries)
        if len(keys) <= self.seen:  # another text has begun
            self.seen = 0
        self._hold(np.array(keys[self.seen :], np.float32))
        self.seen = len(keys)

    def _hold(self, keys: Floats) -> None:
        """Keep keys; beyond `MOST_KEYS` each of all has the same chance to be among those that are
        kept (Vitter 1985, algorithm R)."""
        room = max(0, MOST_KEYS - self._count)
        if room:
            self._keys.append(keys[:room])
        first, self._count = self._count + min(room, len(keys)), self._count + len(keys)
        places = self._rng.integers(0, np.arange(first, self._count) + 1)
        if (places < MOST_KEYS).any():
            if len(self._keys) > 1:
                self._keys = [np.concatenate(self._keys)]
            for place, key in zip(places.tolist(), keys[room:], strict=True):
                if place < MOST_KEYS:
                    self._keys[0][place] = key

    @property
    def metric(self) -> Doubles:
        """The mean of q q^T over the queries, made positive."""
        mean = self.squares / self.queries
        ridge = RIDGE * np.trace(mean) / len(mean) + np.finfo(np.float32).tiny
        found: Doubles = mean + ridge * np.eye(len(mean))
        return found

    def fit(self, rng: np.random.Generator) -> tuple[Floats, Floats, float]:
        """The centroids, the metric, and the share of the scores' mean square about their mean that
        the centroids explain."""
        keys = np.concatenate(self._keys)
        if len(keys) < LEAST_KEYS:
            raise ConfigError(
                f"a codebook is fitted to at least {LEAST_KEYS} tokens, and {len(keys)} were read; "
                "give more or longer texts."
            )
        metric = self.metric
        # A distance in this space is the root of the mean square difference of scores.
        space = np.linalg.cholesky(metric).astype(np.float32)
        points = keys @ space
        centroids = points[rng.choice(len(points), BOOK_SIZE, replace=False)]
        for _ in range(ROUNDS):
            codes = _nearest(points, centroids)
            counts = np.bincount(codes, minlength=BOOK_SIZE)[:, None]
            sums = np.zeros_like(centroids)
            np.add.at(sums, codes, points)
            centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
        left = np.square(points - centroids[_nearest(points, centroids)]).sum(dtype=np.float64)
        spread = np.square(points - points.mean(axis=0)).sum(dtype=np.float64)
        in_keys = np.linalg.solve(space.T.astype(np.float64), centroids.T).T
        explained = float(1 - left / spread) if spread > 0 else 1.0
        return in_keys.astype(np.float32), metric.astype(np.float32), explained


def _nearest(points: Floats, centroids: Floats) -> Longs:
    near = points @ centroids.T - np.square(centroids).sum(axis=1) / np.float32(2)
    found: Longs = near.argmax(axis=1)
    return found


class KeyBooks:
    """Fits a codebook of 256 keys to each head of the layers that it sees, by k-means. Keys are as
    near as their scores are: the distance is that after whitening with the mean of q q^T over the
    queries that read the head."""

    least_tokens = LEAST_KEYS

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._heads: dict[int, list[_Head]] = {}
        self._explained: dict[int, list[float]] = {}

    def saw(self, block: QueryBlock) -> None:
        """See `Calibration`."""
        heads, width = block.keys.shape[1:]
        if block.layer not in self._heads:
            self._heads[block.layer] = [
                _Head(width, np.random.default_rng((self._seed, block.layer, head)))
                for head in range(heads)
            ]
        for head, own in enumerate(self._heads[block.layer]):
            by_head = block.queries.reshape(len(block.queries), heads, -1, width)
            own.saw(by_head[:, head].reshape(-1, width), block.keys[:, head])

    def fit(self) -> Codebooks:
        """Raises ConfigError for layers of different shapes, or too few keys."""
        layers = sorted(self._heads)
        shapes = {(len(heads), len(heads[0].squares)) for heads in self._heads.values()}
        if len(shapes) != 1:
            raise ConfigError("codebooks are of layers with as many heads of the same width each.")
        rng = np.random.default_rng(self._seed)
        fitted = {layer: [head.fit(rng) for head in self._heads[layer]] for layer in layers}
        self._explained = {layer: [share for _, _, share in fitted[layer]] for layer in layers}
        return Codebooks(
            tuple(layers),
            np.stack([[own for own, _, _ in fitted[layer]] for layer in layers]),
            np.stack([[own for _, own, _ in fitted[layer]] for layer in layers]),
        )

    def result(self, about: Mapping[str, Any]) -> bytes:
        """See `Calibration`."""
        return packed_codebooks(self.fit(), about)

    def described(self) -> list[str]:
        """See `Calibration`."""
        if not self._explained:
            self.fit()
        shares = [share for layer in self._explained.values() for share in layer]
        return [
            f"the centroids explain {np.mean(shares):.0%} of how scores differ from key to key, "
            f"{min(shares):.0%} in the worst of {len(shares)} heads"
        ]
