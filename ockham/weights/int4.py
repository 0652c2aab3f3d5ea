"""Weights in 4 bits with a scale for each group of inputs; inputs quantised to 8 bits by group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import Encoding, QuantisedRows
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, FillableLinear, Layout, Role, Values
from ockham.kernels.layouts import ROWS
from ockham.kernels.native import core
from ockham.weights.adopting import adopted
from ockham.weights.by_rows import ByRows, native_codes, product_by_group, regrouped
from ockham.weights.gptq import MIDDLE, calibrated_codes
from ockham.weights.scales import DIVISORS, check_scales, choose_scales

GROUPS = (32, 64, 128)
"""The inputs that may share a scale."""

NARROW = 1024
"""Inputs below which every matrix takes five bits: small models lose more, and weigh little."""

FIVE_BIT_GROUP = 32

SYMMETRIC_ZERO = MIDDLE
"""The code that stands for zero where a matrix has no zero points."""


class Int4Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`group` is how many inputs share a scale. Without one it is 64, and some matrices get 5 bits
    (`Int4.beside`)."""

    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.group not in GROUPS:
            raise ConfigError(f"int4 has groups of {GROUPS} inputs, not of {self.group!r}.")


@register("format", "int4", exact=False)
class Int4(ByRows):
    """Weights in 4 bits by groups of inputs, inputs in int8 by the same groups (w4a8).

    Saves almost three quarters of bf16's bytes: what decoding is bound by. Each group of 32, 64 or
    128 inputs has an fp16 scale, searched for the smallest squared error; sums within a group are
    exact integers, and groups are added in fp32 in order.

    Of K inputs in G groups, `codes`: uint8 (rows, K) below 16, `scales`: float16 (rows, G), and
    where a checkpoint has zero points `zeros`: uint8 (rows, G), else 8: w = (code - zero) * scale.
    """

    name: ClassVar[str] = "int4"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None

    Options: ClassVar[type[msgspec.Struct]] = Int4Options
    forms: ClassVar[tuple[str, ...]] = tuple(f"int4:{group}" for group in GROUPS)

    def __init__(self, options: Int4Options | None = None) -> None:
        group = None if options is None else options.group
        self.mixed = group is None
        self.group = group = group or 64
        self.activations = f"int8 by row and group of {group}"

    @classmethod
    def of(cls, group: int) -> Int4:
        """The format with this group and nothing else beside it."""
        return cls(Int4Options(group))

    @classmethod
    def of_group(cls, group: int) -> Int4:
        if group not in GROUPS:
            raise ValueError(f"its group is {group!r}")
        return cls.of(group)

    def beside(self, role: Role, in_features: int) -> str | None:
        """int8 takes embeddings, head and routers. Unless a group was named, 5 bits (q5_0) take all
        but the large matrices of feed-forward layers, and those too in a narrow model."""
        if role in ("embedding", "head", "router"):
            return "int8"
        if not self.mixed or (
            role == "gate_up" and in_features >= NARROW and in_features % self.group == 0
        ):
            return None
        return "q5_0" if in_features % FIVE_BIT_GROUP == 0 else "int8"

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        if in_features % self.group:
            raise ModelError(
                f"{in_features} inputs cannot be cut into groups of {self.group}: choose another "
                "group, or int8."
            )
        groups = in_features // self.group
        found = {
            "codes": Field("uint8", (in_features,), 4),
            "scales": Field("float16", (groups,), 16),
        }
        return {**found, "zeros": Field("uint8", (groups,), 8)} if zeros else found

    def encode(self, rows: Array) -> Values:
        """Scales are searched by `choose_scales`. Refuses weights whose scale fp16 cannot hold."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        check_scales(wide, min(DIVISORS[SYMMETRIC_ZERO]))
        if core is None:
            codes, scales = choose_scales(wide.reshape(len(wide), -1, self.group))
            return {"codes": codes.reshape(wide.shape), "scales": scales}
        return native_codes(self.name, self.group, wide, np.empty(wide.shape, np.uint8))

    def matmul(self, values: Values, x: Floats) -> Floats:
        """See `product_by_group`; the code of a sum is less its zero point."""
        return product_by_group(x.reshape(len(x), -1, self.group), values, self._widened)

    def decode(self, values: Values, in_features: int) -> Floats:
        codes, scale = self._widened(values)
        rows: Floats = codes * scale[:, :, None]
        return rows.reshape(len(rows), in_features)

    def _widened(self, values: Values) -> tuple[Floats, Floats]:
        """Codes minus zeros (rows, G, group), and scales (rows, G)."""
        codes = values["codes"].reshape(len(values["codes"]), -1, self.group).astype(np.float32)
        scale = values["scales"].astype(np.float32)
        zeros = values.get("zeros")
        if zeros is None:
            return codes - np.float32(SYMMETRIC_ZERO), scale
        return codes - zeros.astype(np.float32)[:, :, None], scale

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> Int4 | None:
        """4-bit codes whose scales are fp16 numbers, in any group that is a multiple of ours."""
        fitting = [g for g in GROUPS if encoding.group % g == 0 and in_features % g == 0]
        if encoding.bits != 4 or not encoding.half_scales or not fitting:
            return None
        return cls.of(max(fitting))

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
        layout: Layout = ROWS,
    ) -> FillableLinear:
        """Larger groups are cut into this format's, which repeats their scales."""
        packed = layout.blank(self, out_features, in_features, encoding.zeros)
        first = 0
        for rows in adopted(blocks, (out_features, in_features), encoding, layout.multiple):
            regular = rows.regrouped(self.group)
            values: Values = {
                "codes": regular.codes,
                "scales": regular.scales.astype(np.float16),
                "zeros": regular.zeros,
            }
            if not encoding.zeros:
                del values["zeros"]
            packed.fill(first, values)
            first += len(rows)
        return packed

    def alone(self) -> Int4:
        """What is fitted needs no fifth bit."""
        return self.of(self.group)

    def fit(self, rows: Floats, moments: Floats, layout: Layout = ROWS) -> FillableLinear:
        """The codes of `gptq.calibrated_codes`."""
        codes, scales = calibrated_codes(rows, moments, self.group)
        packed = layout.blank(self, *rows.shape)

        def padded(values: Values, missing: int) -> Values:
            shapes = ((0, missing), (0, 0))
            return {
                "codes": np.pad(values["codes"], shapes, constant_values=SYMMETRIC_ZERO),
                "scales": np.pad(values["scales"], shapes),
            }

        first = 0
        for piece in regrouped([{"codes": codes, "scales": scales}], layout.multiple, padded):
            packed.fill(first, piece)
            first += len(piece["codes"])
        return packed
