"""What every operation of a program is, and what the records of several operations are made of.

An operation is one file in this package: a record with the contract that every backend keeps. It
says which matrices it multiplies with, what it costs and what memory it works in. Its NumPy twin
stands in `kernels/reference/` under the same file name, and its native twin in `csrc/ops/`. Nothing
lists the operations: a new one is its own files.

In the contracts R is the number of rows of the step, D the hidden size, H and G the numbers of
query and key-value heads, E the size of a head, V the vocabulary. Activations between operations
are fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec

from ockham.core.arrays import Floats
from ockham.core.cost import OperationCost, ProductCost, Sublayer
from ockham.core.registry import find, option_names
from ockham.core.seams import Linear


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A norm over the last axis, in fp32: x / sqrt(mean(x^2) + eps) * weight ("rms"), or the same
    of x - mean(x) ("layer"); plus bias where there is one. What it gives is normed by `then`, where
    there is one.

    `weight` already holds 1 + w where an architecture stores w. Only norms of whole rows of the
    residual stream may be of the kind "layer" or have a bias, and only norms of what a matrix
    multiplies may have another after them."""

    weight: Floats  # (D,) or (E,) or (H * E,)
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: Floats | None = None  # (D,)
    then: Norm | None = None


@dataclass(frozen=True, slots=True)
class DualChunk:
    """Dual chunk attention (An et al. 2024, arXiv:2402.17463): no query is ever farther from a key
    than `reach`, however long the text is.

    Positions are cut into chunks of `chunk` tokens, a multiple of 64. A key at position p is
    rotated to p mod chunk. A query at p, with m = p mod chunk, is rotated to m for keys of its own
    chunk, to min(m + chunk, reach) for those of the chunk before, and to min(2 chunk - 1, reach)
    for those of all chunks before that. So the distance to each of the latest reach - chunk keys is
    the true one. Rows see every key before them, so that the i-th that a row sees has position i.

    Where `original` is not 0, a query's scores are multiplied by (0.1 ln((p + 1) / original) + 1)^2
    from position `original` on (YaRN's temperature, with the length up to the row itself)."""

    chunk: int
    reach: int
    original: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """Rotary position embedding over the first `rotary_dim` elements of each head.

    Element i is paired with element i + rotary_dim / 2 and the pair is rotated by the angle
    position * inverse_frequencies[i] (computed in fp32); both are multiplied by `scale`. The
    frequencies are fixed when the model is loaded. With `dual_chunk`, positions are those that it
    says, and `AttentionInput` leaves queries rotated for keys of their own chunk; `Attend` turns
    them on by the difference for the others. A rotated query is multiplied by
    1 + growth * ln(1 + floor(position / period))."""

    inverse_frequencies: Floats  # (rotary_dim / 2,)
    scale: float = 1.0
    dual_chunk: DualChunk | None = None
    growth: float = 0.0
    period: int = 1

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inverse_frequencies)


class StepSizes(msgspec.Struct, frozen=True):
    """The largest step that memory is planned for."""

    rows: int
    head_rows: int
    """Rows whose logits are wanted."""
    max_model_len: int
    """Cells that a sequence holds at most."""


class Operation:
    """One operation of a program. A subclass is a frozen dataclass with slots.

    An operation that belongs to a sublayer runs over the active rows of that sublayer only
    (`Step.active`), and leaves the others' activations and state as they are.
    """

    __slots__ = ()

    adaptable: ClassVar[tuple[str, ...]] = ()
    """The fields of the matrices to whose products an adapter may add something."""

    @property
    def sublayer(self) -> Sublayer | None:
        """The layer and sublayer that the operation is part of; None where every row needs it."""
        return None

    @property
    def neurons(self) -> int:
        """How many neurons there are of which a step may want the first ones only
        (`Step.leading`); 0 where there are none."""
        return 0

    def matrices(self) -> dict[str, Linear]:
        """The matrices that the operation multiplies with, by the field that holds them."""
        return {}

    def cost(self) -> OperationCost:
        """What a row that runs the operation costs: by default one product with each matrix."""
        return OperationCost(self.sublayer, products=products_of(*self.matrices().values()))

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """Values of fp32 that the operation works in, by the name of the memory that it takes them
        from. Operations that name the same memory use it one after another."""
        return {}


def products_of(
    *matrices: Linear, head: bool = False, experts: int = 0, experts_per_row: int = 0
) -> tuple[ProductCost, ...]:
    """The products with these matrices, those of a matrix in several formats apart."""
    return tuple(
        ProductCost(
            kernel_of(part),
            part.out_features,
            part.in_features,
            part.nbytes,
            1,
            head,
            experts,
            experts_per_row,
            getattr(part, "rank", 0),
        )
        for matrix in matrices
        for part in getattr(matrix, "parts", (matrix,))
    )


def kernel_of(linear: Linear) -> str:
    """The kind of kernel that multiplies with a matrix: its format, and its group where that may be
    chosen."""
    group = getattr(linear, "group", 0)
    chosen = group and "group" in option_names(find("format", linear.format).options)
    return f"{linear.format}:{group}" if chosen else linear.format
