"""What formats share: a matrix comes as consecutive blocks of rows, and is stored as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Self

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.seams import FillableLinear, Layout, Values
from ockham.kernels.layouts import ROWS
from ockham.kernels.native import core, packing_pool
from ockham.weights.blocks import all_finite

if TYPE_CHECKING:
    from ockham.core.seams import Format

ROWS_WIDENED = 256
"""Rows that a plain product widens at a time."""

ROWS_AT_ONCE = 512
"""Rows that are encoded at a time: enough for all threads, and few enough to hold in fp32."""


class ByRows:
    """A format that is packed in blocks of rows, and whose matrices of one shape are all alike
    unless it says otherwise: files then record no group."""

    group: int = 0

    @classmethod
    def of_group(cls, group: int) -> Self:
        if group:
            raise ValueError(f"its group is {group!r}")
        return cls()

    def pack(
        self: Format,
        out_features: int,
        in_features: int,
        blocks: Iterable[Array],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        """A matrix in a layout, of rows of floats."""
        packed = layout.blank(self, out_features, in_features)
        first = 0
        for rows in regrouped(
            checked(blocks, (out_features, in_features)), layout.multiple, with_zeros
        ):
            try:
                packed.fill(first, self.encode(rows["rows"]))
            except ModelError as error:
                last = min(first + count(rows), out_features) - 1
                raise ModelError(f"{error} (rows {first} to {last}).") from None
            first += count(rows)
        return packed


def count(rows: Values) -> int:
    return len(next(iter(rows.values())))


def cut(rows: Values, start: int, stop: int) -> Values:
    return {name: array[start:stop] for name, array in rows.items()}


def joined(parts: list[Values]) -> Values:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_zeros(rows: Values, missing: int) -> Values:
    """The rows, and as many below them of nothing but zeros."""
    return {
        name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        for name, array in rows.items()
    }


def checked(blocks: Iterable[Array], shape: tuple[int, int]) -> Iterator[Values]:
    """Blocks of floats under the name "rows". Raises ModelError if they do not add up to the shape,
    or hold NaN or infinity."""
    rows, columns = shape
    done = 0
    for block in blocks:
        stop = done + len(block)
        if block.ndim != 2 or block.shape[1] != columns or stop > rows:
            raise misfit(block.shape, done, shape)
        if not all_finite(block):
            raise ModelError(f"NaN or infinity stands in rows {done} to {stop - 1}.")
        yield {"rows": block}
        done = stop
    if done != rows:
        raise ModelError(f"only {done} of {rows} rows were found.")


def misfit(block: tuple[int, ...], row: int, shape: tuple[int, int]) -> ModelError:
    """The error of a block that a matrix has no place for."""
    return ModelError(
        f"rows of shape {block} do not fit at row {row} of a matrix of shape {shape}."
    )


def regrouped(
    pieces: Iterable[Values], multiple: int, padded: Callable[[Values, int], Values]
) -> Iterator[Values]:
    """The same rows in pieces of a multiple of so many, at most ROWS_AT_ONCE; what is missing in
    the end is `padded`. Views of the pieces, where they can be: valid until the next is asked
    for."""
    held: Values | None = None  # fewer than `multiple`
    for piece in pieces:
        rows, start = count(piece), 0
        if held is not None:
            start = min(rows, multiple - count(held))
            held = joined([held, cut(piece, 0, start)])
            if count(held) < multiple:
                continue
            yield held
            held = None
        while rows - start >= multiple:
            stop = min(start + ROWS_AT_ONCE, rows)
            stop -= (stop - start) % multiple
            yield cut(piece, start, stop)
            start = stop
        if start < rows:
            held = {name: array[start:rows].copy() for name, array in piece.items()}
    if held is not None:
        yield padded(held, multiple - count(held))


def native_codes(name: str, group: int, rows: Floats, codes: Array) -> Values:
    """`codes`, filled by the core, and the scales of groups: what the format of this name makes of
    rows of floats. The core must be there."""
    scales = np.empty((len(rows), codes.shape[1] // group), np.float16)
    flat = (codes.reshape(-1).view(np.uint8), scales.reshape(-1).view(np.uint16))
    core.quantise(packing_pool(), core.detect(), name, group, rows, *flat)
    return {"codes": codes, "scales": scales}


def product_by_group(
    x: Floats, values: Values, widened: Callable[[Values], tuple[Floats, Floats]]
) -> Floats:
    """The product of inputs (M, G, group) with rows whose groups are added in order: for each group
    in turn, y = fma(float(sum of a * code), scale_x * scale_w, y), where a are the group's inputs
    as int8 (`quantise`). The sums are exact in fp32.

    `widened` makes of some rows' values their codes (rows, G, group) and scales (rows, G).
    """
    a, scale_x = quantise(x)
    by_group = np.ascontiguousarray(a.transpose(1, 0, 2))  # (G, M, group)
    rows = count(values)
    product = np.empty((len(x), rows), np.float32)
    for first in range(0, rows, ROWS_WIDENED):
        codes, scale_w = widened(cut(values, first, first + ROWS_WIDENED))
        sums = by_group @ codes.transpose(1, 2, 0)  # (G, M, rows)
        y = np.zeros(sums.shape[1:], np.float32)
        for g in range(len(sums)):
            y = add_group(y, sums[g], scale_x[:, g] * scale_w[:, g])
        product[:, first : first + len(codes)] = y
    return product


def add_group(y: Floats, sums: Floats, scales: Floats) -> Floats:
    """fma(sums, scales, y), as the kernels add one group's sums.

    It is done in float64, whose two roundings differ from one in about one case of 2^29.
    """
    added: Floats = (y.astype(np.float64) + sums.astype(np.float64) * scales).astype(np.float32)
    return added


def quantise(x: Floats) -> tuple[Floats, Floats]:
    """The last axis as int8 with one scale: (values as floats, scales with a last axis of 1).

    scale = max|x| / 127 and value = round(x * (127 / max|x|)), ties to even; both zero where
    max|x| is below 2^-100. A row with NaN or infinity has the scale NaN.
    """
    most = np.abs(x).max(axis=-1, keepdims=True)
    finite, tiny = np.isfinite(most), most < np.float32(2.0**-100)
    most = np.where(finite & ~tiny, most, np.float32(127.0))
    values = np.where(finite & ~tiny, np.rint(x * (np.float32(127.0) / most)), np.float32(0.0))
    scales = np.where(tiny, np.float32(0.0), most / np.float32(127.0))
    return values, np.where(finite, scales, np.float32(np.nan))
