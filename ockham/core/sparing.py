"""How much of its feed-forwards a row runs, where it is decided while the row is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats, Ints

SKIPPED = -1
"""In place of a number of neurons: none runs."""
ALL = 0
"""In place of a number of neurons: all run."""


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


class RoutingRule(msgspec.Struct, frozen=True):
    """Before each feed-forward, a row chooses how many of the first neurons it runs: the choice c
    with the largest weights[layer, c] . x / rms(x) + biases[layer, c], the first one on a tie, for
    the row x of the residual stream. What a row chooses follows from the row alone."""

    widths: Ints
    """(layers, choices) neurons, or `SKIPPED` or `ALL`."""
    weights: Floats  # (layers, choices, hidden)
    biases: Floats  # (layers, choices)
    place: int
    """The first token of a sequence, counted from 0 with the prompt, that the rule is for."""


_Number = TypeVar("_Number", np.int32, np.float32)

Rule = SparingRule | RoutingRule


@dataclass(slots=True)
class Routers:
    """`RoutingRule`s of one step, all for the same number of layers and choices."""

    widths: Ints  # (rules, layers, choices)
    weights: Floats  # (rules, layers, choices, hidden)
    biases: Floats  # (rules, layers, choices)


@dataclass(slots=True)
class Sparing:
    """By which rules the R rows of a step decide. Rule i that looks at cosines has the i-th entry
    of `thresholds`, `lengths`, `firsts` and `stops`: see `SparingRule`."""

    rows: Ints  # (R,) the rule of each row, -1 for none
    thresholds: Doubles
    lengths: Ints
    firsts: Ints
    stops: Ints
    starts: Ints
    """(layers,) the first operation of each layer's feed-forward."""
    ends: Ints
    """(layers,) the operation after its last one; as `starts` where the layer has none."""
    routed: Ints | None = None
    """(R,) which of `routers` each row follows, -1 for none; None with it."""
    routers: Routers | None = None
    told: Ints | None = None
    """(layers, R) how many neurons rows run that follow no rule, or `SKIPPED` or `ALL`; None: they
    run all."""

    @classmethod
    def of(cls, of_rows: Ints, rules: Sequence[Rule], starts: Ints, ends: Ints) -> Sparing:
        """Of rows that follow `rules[of_rows[r]]`, -1 for none."""
        cosines = [n for n, rule in enumerate(rules) if isinstance(rule, SparingRule)]
        routes = [n for n, rule in enumerate(rules) if isinstance(rule, RoutingRule)]
        own = [rule for rule in rules if isinstance(rule, SparingRule)]
        found = cls(
            _numbered(of_rows, cosines),
            np.array([rule.threshold for rule in own], np.float64),
            np.array([rule.length for rule in own], np.int32),
            np.array([rule.first for rule in own], np.int32),
            np.array([rule.stop for rule in own], np.int32),
            starts,
            ends,
        )
        routing = [rule for rule in rules if isinstance(rule, RoutingRule)]
        if routing:
            found.routed = _numbered(of_rows, routes)
            choices = max(rule.biases.shape[-1] for rule in routing)
            found.routers = Routers(
                np.stack([_padded(rule.widths, choices, 0) for rule in routing]),
                np.stack([_padded(rule.weights, choices, 0) for rule in routing]),
                np.stack([_padded(rule.biases, choices, -np.inf) for rule in routing]),
            )
        return found


def _padded(values: npt.NDArray[_Number], choices: int, by: float) -> npt.NDArray[_Number]:
    """(layers, choices, ...), with choices that nobody makes."""
    missing = choices - values.shape[1]
    if not missing:
        return values
    shape = (values.shape[0], missing, *values.shape[2:])
    return np.concatenate((values, np.full(shape, by, values.dtype)), axis=1)


def _numbered(of_rows: Ints, numbers: Sequence[int]) -> Ints:
    """Rows that follow one of these rules, by its place among them; -1 for the others."""
    found = np.full(len(of_rows), -1, np.int32)
    for place, number in enumerate(numbers):
        found[of_rows == number] = place
    return found
