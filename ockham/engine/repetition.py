"""Finds out that a text has got into a loop."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.thoughts import RepetitionDetectionParams


class Repetition:
    """Of each size of pattern, how many of the latest tokens equal the token one pattern before.

    A pattern of p tokens stands c times in a row where the latest p * (c - 1) do. A token costs one
    comparison for each size.
    """

    __slots__ = ("_latest", "_params", "_runs", "_sizes", "_wanted", "found")

    def __init__(self, params: RepetitionDetectionParams) -> None:
        self._params = params
        first = max(1, params.min_pattern_size)
        self._sizes = np.arange(first, params.max_pattern_size + 1, dtype=np.int32)
        self._wanted: Ints = self._sizes * (params.min_count - 1)
        self._runs: Ints = np.zeros(len(self._sizes), np.int32)
        self._latest: Ints = np.full(params.max_pattern_size, -1, np.int32)
        """The latest tokens, the newest first."""
        self.found = False
        """Whether the latest token completed a repetition."""

    def fresh(self) -> Repetition:
        """That of another text, before its first token."""
        return Repetition(self._params)

    def fork(self) -> Repetition:
        """Another one that has seen the same."""
        twin = self.fresh()
        twin._runs, twin._latest, twin.found = self._runs.copy(), self._latest.copy(), self.found
        return twin

    def push(self, token: int) -> None:
        """`token` has come."""
        latest, runs = self._latest, self._runs
        runs += 1
        runs *= latest[self._sizes - 1] == token
        latest[1:] = latest[:-1].copy()
        latest[0] = token
        self.found = bool((runs >= self._wanted).any())
