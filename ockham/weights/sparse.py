"""What formats share that store only the weights that are not zero, beside a bitmask.

How much room a matrix takes depends on its values, so that it is packed in two passes: rows are
encoded and counted, and then laid out. `csrc/kinds/sparse.h` has the layout that is counted for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

import numpy as np

from ockham.core.arrays import Array
from ockham.core.errors import ModelError
from ockham.core.seams import FillableLinear, Layout, Role, Values
from ockham.kernels.layouts import ROWS
from ockham.weights.by_rows import checked, count, regrouped, with_zeros

PANEL = 16
"""Rows of a panel."""

UNIT = 64
"""Inputs that share a bitmask in a panel."""

LINE = 64
"""Bytes that `Sparse.group` counts by."""

MASK_BYTES = PANEL * UNIT // 8


class Sparse:
    """A format whose zeros take one bit each. `group` is how many lines of 64 bytes the bitmasks
    and values of a matrix take; 0 is room for one without zeros.

    `values` is the field that holds what is stored of each weight, of `value_bytes` bytes.
    """

    name: ClassVar[str]
    values: ClassVar[str]
    value_bytes: ClassVar[int]

    def __init__(self) -> None:
        self.group = 0

    @classmethod
    def of_group(cls, group: int) -> Self:
        if type(group) is not int or not 0 <= group < 1 << 26:
            raise ValueError(f"its group is {group!r}")
        found = cls()
        found.group = group
        return found

    def beside(self, role: Role, in_features: int) -> str | None:
        """8 bits take embeddings, head and routers, which are not pruned."""
        return "int8" if role in ("embedding", "head", "router") else None

    def encode(self, rows: Array) -> Values:
        raise NotImplementedError

    def sized(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Self:
        """The format with as much room as a matrix of these rows takes. Raises as `pack` does."""
        shape = (out_features, in_features)
        stored = sum(self._stored(each) for each in self._encoded(shape, blocks, PANEL))
        return self._with_room(shape, stored)

    def pack(
        self,
        out_features: int,
        in_features: int,
        blocks: Iterable[Array],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        """A matrix in a layout, of rows of floats; what is not zero has just the room it takes."""
        shape = (out_features, in_features)
        pieces = list(self._encoded(shape, blocks, layout.multiple))
        found = self._with_room(shape, sum(map(self._stored, pieces)))
        packed = layout.blank(found, *shape)  # type: ignore[arg-type]
        first = 0
        for piece in pieces:
            packed.fill(first, piece)
            first += count(piece)
        return packed

    def _encoded(
        self, shape: tuple[int, int], blocks: Iterable[Array], multiple: int
    ) -> Iterator[Values]:
        """The rows as they are stored, in pieces of a multiple of so many."""
        first = 0
        for rows in regrouped(checked(blocks, shape), multiple, with_zeros):
            try:
                yield self.encode(rows["rows"])
            except ModelError as error:
                last = min(first + count(rows), shape[0]) - 1
                raise ModelError(f"{error} (rows {first} to {last}).") from None
            first += count(rows)

    def _stored(self, values: Values) -> int:
        """How many weights are not zero."""
        return int(np.count_nonzero(values[self.values]))

    def _with_room(self, shape: tuple[int, int], stored: int) -> Self:
        units = -(-shape[0] // PANEL) * -(-shape[1] // UNIT)
        nbytes = units * MASK_BYTES + stored * self.value_bytes
        return self.of_group(-(-nbytes // LINE))
