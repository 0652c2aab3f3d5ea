"""What formats with a codebook for each row share: levels that are fitted to the row's weights, and
a few weights apart."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Doubles, Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Arithmetic, Field, FillableLinear, Layout, Role, Values
from ockham.kernels.layouts import ROWS
from ockham.weights.by_rows import (
    ROWS_AT_ONCE,
    ROWS_WIDENED,
    ByRows,
    add_group,
    count,
    cut,
    quantise,
    regrouped,
    with_zeros,
)

UNIT = 64
"""The inputs of a matrix are a multiple of this."""

SPAN = 128
"""The inputs of a product that are quantised with one scale."""

MOST_LEVEL = 63
"""The largest level, in units of the row's scale: two products of a level and an input fit 16
bits."""

APART = 200
"""Of so many weights of a row one is kept apart: 0.5%, as in the paper."""

MOST_APART = 32767
ROUNDS = 20
"""Of Lloyd's algorithm. The paper's code stops after 50; later ones change little."""

MOST_WEIGHT = 2.0**100
"""Weights from here on are refused: fp32 must hold what is made of their scales."""


class Codebook(ByRows):
    """A format whose rows have levels of their own: w = levels[code] * scale, and what is missing
    of a few weights stands apart.

    Of K inputs `codes`: uint8 (rows, K), `levels`: int8 (rows, 2^bits), rising, at most 63 in
    magnitude, `scale`: float32 (rows, 1), and n = ceil(K / 200) `columns`: uint16 (rows, n),
    rising, with `extras`: int16 (rows, n): w[columns] += extras * scale.
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = f"int8 by row and {SPAN} inputs"

    def beside(self, role: Role, in_features: int) -> str | None:
        """8 bits take embeddings, head and routers, and what has no whole units of inputs."""
        kept = role in ("embedding", "head", "router") or in_features % UNIT
        return "int8" if kept else None

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        if in_features % UNIT or in_features > 1 << 16:
            raise ModelError(
                f"{self.name} needs a multiple of {UNIT} inputs, and at most {1 << 16}, not "
                f"{in_features}: choose another format."
            )
        apart = (-(-in_features // APART),)
        return {
            "codes": Field("uint8", (in_features,), self.bits),
            "levels": Field("int8", (1 << self.bits,), 8),
            "scale": Field("float32", (1,), 32),
            "columns": Field("uint16", apart, 16),
            "extras": Field("int16", apart, 16),
        }

    def encode(self, rows: Array) -> Values:
        """Levels that all weights have the same part in. Refuses weights that are too large."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        return self._fitted(wide, np.ones(wide.shape[1], np.float32))

    def alone(self) -> Self:
        """Nothing else has to stand beside it."""
        return self

    def fit(self, rows: Floats, moments: Floats, layout: Layout = ROWS) -> FillableLinear:
        """Levels in which a weight has as much part as its input has second moment on the text:
        that of least squared error of the product where inputs are independent."""
        importance: Floats = np.diag(moments).astype(np.float32)
        if not np.isfinite(importance).all():
            raise ModelError("the inputs of this product are not finite on the calibration text.")
        if not importance.any():
            importance = np.ones_like(importance)
        packed = layout.blank(self, *rows.shape)
        pieces: list[Values] = [{"rows": rows}]
        first = 0
        for piece in regrouped(pieces, layout.multiple, with_zeros):
            packed.fill(first, self._fitted(piece["rows"].astype(np.float32), importance))
            first += count(piece)
        return packed

    def _fitted(self, rows: Floats, importance: Floats) -> Values:
        """The values of rows (N, K) whose inputs are so important (K)."""
        if np.abs(rows).max() >= MOST_WEIGHT:
            raise ModelError("a weight is too large for the scale of its row.")
        parts = [
            self._fitted_block(rows[start : start + ROWS_AT_ONCE], importance)
            for start in range(0, len(rows), ROWS_AT_ONCE)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _fitted_block(self, rows: Floats, importance: Floats) -> Values:
        apart = -(-rows.shape[1] // APART)
        sensitive = np.abs(rows) * np.sqrt(importance)
        most = np.argpartition(sensitive, -apart, axis=1)[:, -apart:]
        columns = np.sort(most, axis=1)
        inner = rows.copy()
        np.put_along_axis(inner, columns, 0.0, axis=1)
        weight = np.broadcast_to(importance, rows.shape).copy()
        np.put_along_axis(weight, columns, 0.0, axis=1)
        levels = fitted_levels(inner, weight, 1 << self.bits)
        scale = (np.abs(levels).max(axis=1, keepdims=True) / np.float32(MOST_LEVEL)).astype(
            np.float32
        )
        largest = np.abs(rows).max(axis=1, keepdims=True) / np.float32(MOST_APART)
        scale = np.maximum(scale, largest)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        whole: Floats = np.rint(levels * inverse).astype(np.float32)
        codes = nearest(rows * inverse, whole)
        missing = rows - np.take_along_axis(whole, codes.astype(np.int64), axis=1) * scale
        extras = np.rint(np.take_along_axis(missing, columns, axis=1) * inverse)
        return {
            "codes": codes,
            "levels": whole.astype(np.int8),
            "scale": scale,
            "columns": columns.astype(np.uint16),
            "extras": np.clip(extras, -MOST_APART, MOST_APART).astype(np.int16),
        }

    def matmul(self, values: Values, x: Floats) -> Floats:
        """For each span of inputs in turn, y = fma(float(sum of a * level), scale_x * scale, y),
        where a are the span's inputs as int8 (`quantise`); then for each weight that stands apart,
        in order, y = fma(float(a * extra), scale_x * scale, y). The sums are exact integers."""
        rows, inputs = count(values), x.shape[1]
        product = np.zeros((len(x), rows), np.float32)
        spans = [slice(k, min(k + SPAN, inputs)) for k in range(0, inputs, SPAN)]
        prepared = [quantise(x[:, span]) for span in spans]
        whole = np.concatenate([a for a, _ in prepared], axis=1)  # (M, K)
        scales = np.concatenate([scale for _, scale in prepared], axis=1)  # (M, spans)
        for first in range(0, rows, ROWS_WIDENED):
            part = cut(values, first, first + ROWS_WIDENED)
            levels = self._levels(part)
            scale: Floats = part["scale"].astype(np.float32).T
            y = product[:, first : first + len(levels)]
            for span, (a, scale_x) in zip(spans, prepared, strict=True):
                y[...] = add_group(y, a @ levels[:, span].T, scale_x * scale)
            for number in range(part["columns"].shape[1]):
                column = part["columns"][:, number].astype(np.int64)
                sums = whole[:, column] * part["extras"][:, number].astype(np.float32)
                y[...] = add_group(y, sums, scales[:, column // SPAN] * scale)
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        whole = self._levels(values)
        rows = np.arange(len(whole))[:, None]
        whole[rows, values["columns"].astype(np.int64)] += values["extras"].astype(np.float32)
        decoded: Floats = whole * values["scale"].astype(np.float32)
        return decoded

    def _levels(self, values: Values) -> Floats:
        """Weights (rows, K) in units of their row's scale, without what stands apart."""
        codes = values["codes"].astype(np.int64)
        found: Floats = np.take_along_axis(values["levels"].astype(np.float32), codes, axis=1)
        return found


def nearest(units: Floats, levels: Floats) -> npt.NDArray[np.uint8]:
    """For each value (N, K) the code of the nearest of its row's levels (N, L), which rise; the
    lower one where two are."""
    halfway = (levels[:, 1:] + levels[:, :-1]) / 2
    codes = np.zeros(units.shape, np.uint8)
    for level in range(halfway.shape[1]):
        codes += units > halfway[:, level : level + 1]
    return codes


def fitted_levels(rows: Floats, weight: Floats, count: int) -> Floats:
    """Levels (N, count), rising, of least squared error of rows (N, K), each value so often as its
    weight (N, K) says: k-means in one dimension by Lloyd's algorithm (SqueezeLLM, arXiv:2306.07629,
    section 4.1), begun at quantiles.

    A row is sorted once; clusters are ranges of it, whose sums are differences of running sums.
    """
    outputs, inputs = rows.shape
    order = np.argsort(rows, axis=1, kind="stable")
    values: Doubles = np.take_along_axis(rows, order, axis=1).astype(np.float64)
    weights: Doubles = np.take_along_axis(weight, order, axis=1).astype(np.float64)
    sums = _running(weights)
    moments = _running(weights * values)
    # All rows at once are found in one sorted array: row r lies from 2 r to 2 r + 1.
    low = values[:, :1]
    width = np.where(values[:, -1:] > low, values[:, -1:] - low, 1.0)
    row = np.arange(outputs)[:, None]
    flat = ((values - low) / width + 2 * row).ravel()

    def places(borders: Doubles) -> npt.NDArray[np.int64]:
        """How many values of its row lie below each border (N, n)."""
        within = np.clip((borders - low) / width, 0.0, 1.0) + 2 * row
        found = np.searchsorted(flat, within.ravel(), side="left").reshape(borders.shape)
        below: npt.NDArray[np.int64] = found - row * inputs
        return below

    density = np.cumsum(np.cbrt(weights), axis=1)  # what minimal squared error asks of many levels
    share = density / np.maximum(density[:, -1:], 1e-300)
    at = np.stack([(share < (i + 0.5) / count).sum(axis=1) for i in range(count)], axis=1)
    levels = np.take_along_axis(values, np.minimum(at, inputs - 1), axis=1)
    levels[:, 0] = (levels[:, 0] + values[:, 0]) / 2
    levels[:, -1] = (levels[:, -1] + values[:, -1]) / 2
    for _ in range(ROUNDS):
        ends = np.full((outputs, count + 1), inputs)
        ends[:, 0] = 0
        ends[:, 1:-1] = places((levels[:, 1:] + levels[:, :-1]) / 2)
        part = np.diff(np.take_along_axis(sums, ends, axis=1), axis=1)
        total = np.diff(np.take_along_axis(moments, ends, axis=1), axis=1)
        levels = np.where(part > 0, total / np.where(part > 0, part, 1.0), levels)
        levels.sort(axis=1)
    found: Floats = levels.astype(np.float32)
    return found


def _running(values: Doubles) -> Doubles:
    """Sums (N, K + 1) of the first 0 to K values of each row (N, K)."""
    found: Doubles = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=found[:, 1:])
    return found
