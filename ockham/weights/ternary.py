"""Weights that are -1, 0 or 1 times a scale of their row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import BlockRows
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, FillableLinear, Layout, Role, Values
from ockham.kernels.layouts import ROWS
from ockham.weights.by_rows import (
    ROWS_WIDENED,
    ByRows,
    add_group,
    count,
    cut,
    misfit,
    quantise,
    regrouped,
    with_zeros,
)

UNIT = 32
"""The inputs of a matrix are a multiple of this."""

SPAN = 128
"""The inputs of a product whose sum is an integer, and that are quantised with one scale unless
the whole row is."""

WHOLE_ROW = -1

MOST_WEIGHT = 2.0**100
"""Weights from here on are refused: fp32 must hold their scale."""


class TernaryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`span` is how many inputs of a product are quantised with one scale: 128, or -1 for all of
    a row, as models are trained that are ternary."""

    span: int = SPAN

    def __post_init__(self) -> None:
        if self.span not in (SPAN, WHOLE_ROW):
            raise ConfigError(
                f"ternary quantises inputs by {SPAN}, or {WHOLE_ROW} for all of a row, not by "
                f"{self.span!r}."
            )


@register("format", "ternary", exact=False)
class Ternary(ByRows):
    """Weights of -1, 0 and 1 times a scale of their row, in 2 bits; inputs in int8 by 128.

    BitNet b1.58 (arXiv:2402.17764, section 2) and MatMul-free models (arXiv:2406.02528) are trained
    so. Checkpoints that are stored so keep their bits, and their products quantise inputs with one
    scale for a row, as in training (`ternary:-1`). Of other weights a code is the ratio to the mean
    magnitude of its row, rounded and clipped; the scale is then that of least squared error, so
    that rows which are ternary already are held as they are. For models that were not trained for
    it, it is far too coarse.

    `codes`: uint8 (rows, K), 0 to 2, `scale`: float32 (rows, 1); w = (code - 1) * scale.
    """

    name: ClassVar[str] = "ternary"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None

    Options: ClassVar[type[msgspec.Struct]] = TernaryOptions

    def __init__(self, options: TernaryOptions | None = None) -> None:
        self.whole = options is not None and options.span == WHOLE_ROW
        self.group = WHOLE_ROW if self.whole else 0
        self.activations = "int8 by row" if self.whole else f"int8 by row and {SPAN} inputs"

    @classmethod
    def of_group(cls, group: int) -> Ternary:
        if group not in (0, WHOLE_ROW):
            raise ValueError(f"its group is {group!r}")
        return cls(TernaryOptions(group or SPAN))

    def beside(self, role: Role, in_features: int) -> str | None:
        """8 bits take embeddings, head and routers, and what has no whole units of inputs."""
        kept = role in ("embedding", "head", "router") or in_features % UNIT
        return "int8" if kept else None

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        if in_features % UNIT:
            raise ModelError(
                f"ternary needs a multiple of {UNIT} inputs, not {in_features}: choose another "
                "format."
            )
        return {"codes": Field("uint8", (in_features,), 2), "scale": Field("float32", (1,), 32)}

    def encode(self, rows: Array) -> Values:
        """Refuses weights that are too large."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        magnitudes = np.abs(wide)
        if magnitudes.max() >= MOST_WEIGHT:
            raise ModelError("a weight is too large for the scale of its row.")
        mean = magnitudes.mean(axis=1, keepdims=True)
        inverse = np.divide(np.float32(1), mean, out=np.zeros_like(mean), where=mean != 0)
        signs = np.clip(np.rint(wide * inverse), -1, 1)
        total = (wide * signs).sum(axis=1, dtype=np.float64, keepdims=True)
        scale = total / np.maximum(np.abs(signs).sum(axis=1, keepdims=True), 1)
        return {"codes": (signs + 1).astype(np.uint8), "scale": scale.astype(np.float32)}

    def adopt(
        self,
        out_features: int,
        in_features: int,
        blocks: Iterable[BlockRows],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value. Their
        `scales` are float32 (rows, 1).

        Raises ModelError if they do not add up to the shape, a code is not 0, 1 or 2, or a scale is
        not finite or too large.
        """
        packed = layout.blank(self, out_features, in_features)
        first = 0
        for rows in regrouped(
            self._checked(blocks, (out_features, in_features)), layout.multiple, with_zeros
        ):
            packed.fill(first, rows)
            first += count(rows)
        return packed

    def matmul(self, values: Values, x: Floats) -> Floats:
        """For each span of inputs in turn, y = fma(float(sum of a * (code - 1)), scale_x * scale,
        y), where a are the span's inputs as int8 (`quantise`), or the row's. The sums are exact
        integers."""
        rows, inputs = count(values), x.shape[1]
        product = np.zeros((len(x), rows), np.float32)
        spans = [slice(k, min(k + SPAN, inputs)) for k in range(0, inputs, SPAN)]
        if self.whole:
            whole, scale_of_row = quantise(x)
            prepared = [(whole[:, span], scale_of_row) for span in spans]
        else:
            prepared = [quantise(x[:, span]) for span in spans]
        for first in range(0, rows, ROWS_WIDENED):
            part = cut(values, first, first + ROWS_WIDENED)
            signs = part["codes"].astype(np.float32) - np.float32(1)
            scale: Floats = part["scale"].astype(np.float32).T
            y = product[:, first : first + len(signs)]
            for span, (a, scale_x) in zip(spans, prepared, strict=True):
                y[...] = add_group(y, a @ signs[:, span].T, scale_x * scale)
        return product

    def decode(self, values: Values, in_features: int) -> Floats:
        rows: Floats = (values["codes"].astype(np.float32) - np.float32(1)) * values[
            "scale"
        ].astype(np.float32)
        return rows

    def _checked(self, blocks: Iterable[BlockRows], shape: tuple[int, int]) -> Iterator[Values]:
        """The fields of each block of rows. Raises ModelError as `adopt` says."""
        done = 0
        for block in blocks:
            stop = done + len(block)
            if block.codes.shape[1] != shape[1] or stop > shape[0]:
                raise misfit(block.codes.shape, done, shape)
            if (block.codes > 2).any():
                raise ModelError(
                    f"a code that is neither -1, 0 nor 1 stands in rows {done} to {stop - 1}."
                )
            scale = block.scales.astype(np.float32)
            if not (np.abs(scale) < MOST_WEIGHT).all():
                raise ModelError(
                    f"a scale is NaN, infinite or too large (rows {done} to {stop - 1})."
                )
            yield {"codes": block.codes, "scale": scale}
            done = stop
        if done != shape[0]:
            raise ModelError(f"only {done} of {shape[0]} rows were found.")
