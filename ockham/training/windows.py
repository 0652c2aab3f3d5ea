"""Which rows each step of training reads: a pure function of the seed and the step, so that a run
goes on from its step number alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Windows:
    """Texts one after the other, read in windows of `context` + 1 tokens in a shuffled order, each
    once before any is read again."""

    def __init__(self, texts: Iterable[Sequence[int]], context: int, seed: int, stage: int) -> None:
        stream = np.concatenate([np.asarray(text, np.int64) for text in texts])
        self.context = min(context, len(stream) - 1)
        self._stream: Ids = stream
        self._seed = (seed, stage)
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def batch(self, step: int, rows: int) -> Ids:
        """The rows of a step, (rows, context + 1)."""
        return np.stack([self._window(row) for row in range(step * rows, (step + 1) * rows)])

    def _window(self, row: int) -> Ids:
        windows = max(1, (len(self._stream) - 1) // self.context - 1)
        epoch, i = divmod(row, windows)
        offset, order = self._order(epoch, windows)
        start = offset + int(order[i]) * self.context
        return self._stream[start : start + self.context + 1]

    def _draw_order(self, epoch: int, windows: int) -> tuple[int, Ids]:
        rng = np.random.default_rng([*self._seed, epoch])
        spare = len(self._stream) - 1 - windows * self.context
        return int(rng.integers(min(self.context, spare) + 1)), rng.permutation(windows)
