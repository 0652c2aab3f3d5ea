"""The weights that the compiler asks for, and a matrix of which only the size is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Linear, Role


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, stop) of a tensor of the checkpoint, which must have this shape.

    `pairs`, where rotary pairs are neighbours in the checkpoint, is the size of a head and how many
    elements of it are rotated: the rows of whole heads are wanted in the order of `halves`. Where
    `turned`, the transpose of the rows is wanted; such a part is a matrix of its own."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    pairs: tuple[int, int] | None = None
    turned: bool = False


def halves(rows: int, pairs: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Where the rows of heads stand whose rotary pairs are neighbours, in the order in which the
    first of all pairs of a head come before the second ones, and what is not rotated last."""
    head, rotated = pairs
    within = np.arange(head)
    within[:rotated] = np.arange(rotated).reshape(-1, 2).T.reshape(-1)
    return (np.arange(rows).reshape(-1, head)[:, within]).reshape(-1)


VectorPart = tuple[str, tuple[int, ...]]
"""A tensor of the checkpoint, all of whose rows are taken, and the shape that it must have."""


def vector_length(parts: Sequence[VectorPart]) -> int:
    """Values of the vector that parts make up."""
    return sum(math.prod(shape) for _, shape in parts)


def matrix_shape(parts: Sequence[Part]) -> tuple[int, int]:
    """Rows and columns of the matrix that parts make up."""
    rows, columns = sum(part.stop - part.start for part in parts), parts[0].shape[-1]
    return (columns, rows) if parts[0].turned else (rows, columns)


class Weights(Protocol):
    """What the compiler asks of a checkpoint."""

    def has(self, name: str) -> bool: ...

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        """One packed matrix from the rows of its parts, one after another."""
        ...

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        """The values of tensors, one after another, plus an offset, in fp32."""
        ...


@dataclass(slots=True)
class UnloadedLinear:
    """A matrix that is only planned: its shape and what it would take, but no values."""

    format: str
    out_features: int
    in_features: int
    nbytes: int
    arrays: dict[str, Array] = field(default_factory=dict)

    def matmul(self, x: Floats) -> NoReturn:
        raise ModelError("the weights of this program have not been loaded.")

    def rows(self, ids: npt.NDArray[np.int32]) -> NoReturn:
        raise ModelError("the weights of this program have not been loaded.")
