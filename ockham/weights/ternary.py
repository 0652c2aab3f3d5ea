"""Weights that are -1, 0 or 1 times a scale of their row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Role, Values
from ockham.weights.by_rows import ROWS_WIDENED, ByRows, add_group, count, cut, quantise

UNIT = 32
"""The inputs of a matrix are a multiple of this."""

SPAN = 128
"""The inputs of a product that are quantised with one scale."""

MOST_WEIGHT = 2.0**100
"""Weights from here on are refused: fp32 must hold their scale."""


@register("format", "ternary", exact=False)
class Ternary(ByRows):
    """Weights of -1, 0 and 1 times a scale of their row, in 2 bits; inputs in int8 by 128.

    BitNet b1.58 (arXiv:2402.17764, section 2) and MatMul-free models (arXiv:2406.02528) are trained
    so. A weight's code is its ratio to the mean magnitude of its row, rounded and clipped; the
    scale is then that of least squared error, so that rows which are ternary already are held as
    they are. For models that were not trained for it, it is far too coarse.

    `codes`: uint8 (rows, K), 0 to 2, `scale`: float32 (rows, 1); w = (code - 1) * scale.
    """

    name: ClassVar[str] = "ternary"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = f"int8 by row and {SPAN} inputs"

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

    def matmul(self, values: Values, x: Floats) -> Floats:
        """For each span of inputs in turn, y = fma(float(sum of a * (code - 1)), scale_x * scale,
        y), where a are the span's inputs as int8 (`quantise`). The sums are exact integers."""
        rows, inputs = count(values), x.shape[1]
        product = np.zeros((len(x), rows), np.float32)
        spans = [slice(k, min(k + SPAN, inputs)) for k in range(0, inputs, SPAN)]
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
