"""The router of a model that runs some of its layers several times."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.core.arrays import Floats
from ockham.kernels.ops.operation import Operation

LEAST_SQUARE = 1e-6
"""Added to the mean square of a row before it is divided by its root."""


@dataclass(frozen=True, slots=True, eq=False)
class Recurse(Operation):
    """Choose the rows that take one more pass: of the active rows those whose score is above 0.

    The score of a row x is router . x / sqrt(mean(x^2) + 1e-6) + bias, and what `Step.deeper` adds
    for it, in double precision. Up to the operation `stop`, only rows that go on are active, unless
    a later one chooses among them. In the layers of `group` the rows that go on stand side by side:
    the i-th one of a sequence has the slot and the context that the step names for the sequence's
    i-th row. So these layers hold cells of rows that went on, and of no others.

    The step's rows are of chains, and `Step.active` is empty.
    """

    number: int
    """Which pass it is, the first one that rows may leave out being 0."""
    group: int
    router: Floats  # (D,)
    bias: Floats  # (1,)
    stop: int
