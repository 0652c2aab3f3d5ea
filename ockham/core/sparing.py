"""How rows decide, while they are computed, which feed-forwards they skip: `Sparing`."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Ints


class SparingRule(msgspec.Struct, frozen=True):
    """Once the cosine between a row of the residual stream before and after a feed-forward of the
    layers [first, stop) is `threshold` or more, the row skips the next `length` feed-forwards of
    these layers. What a row skips follows from the row alone."""

    threshold: float
    length: int
    first: int
    stop: int
    place: int
    """The first token of a sequence, counted from 0 with the prompt, that the rule is for."""


@dataclass(slots=True)
class Sparing:
    """By which rules the R rows of a step decide. Rule i has the i-th entry of `thresholds`,
    `lengths`, `firsts` and `stops`: see `SparingRule`."""

    rows: Ints  # (R,) the rule of each row, -1 for none
    thresholds: Doubles
    lengths: Ints
    firsts: Ints
    stops: Ints
    starts: Ints
    """(layers,) the first operation of each layer's feed-forward."""
    ends: Ints
    """(layers,) the operation after its last one; as `starts` where the layer has none."""

    @classmethod
    def of(cls, rows: Ints, rules: list[SparingRule], starts: Ints, ends: Ints) -> Sparing:
        return cls(
            rows,
            np.array([rule.threshold for rule in rules], np.float64),
            np.array([rule.length for rule in rules], np.int32),
            np.array([rule.first for rule in rules], np.int32),
            np.array([rule.stop for rule in rules], np.int32),
            starts,
            ends,
        )
