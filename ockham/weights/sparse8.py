"""Weights in 8 bits of which only those are stored that are not zero."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Values
from ockham.kernels.native import core, packing_pool
from ockham.weights.by_rows import product_by_group
from ockham.weights.scales import check_scales
from ockham.weights.sparse import UNIT, Sparse


@register("format", "sparse8", exact=False, paper="17")
class Sparse8(Sparse):
    """Weights in int8 that are not zero, beside a bitmask of all; inputs in int8, both by 64.

    Flash-LLM (arXiv:2309.10285): a pruned matrix is loaded as it is stored, expanded in registers,
    and multiplied as one without zeros, because memory and not arithmetic is what decoding waits
    for. Takes 8 bits for each weight that is not zero, 1 for each weight, and 0.28 for scales and
    places: 5.3 bits with half of them zero, against 8.25 of int8. It holds any mask, but with fewer
    than 13% zeros it is larger than int8. Zeros stay zero to the bit, which is why weights and
    inputs are not rotated, as those of int8 are.

    Of K inputs in G groups of 64, the last of which is padded with zeros, `codes`: int8 (rows,
    64 G), and `scales`: float16 (rows, G), the largest magnitude of a group over 127;
    w = code * scale.
    """

    name: ClassVar[str] = "sparse8"
    arithmetic: ClassVar[Arithmetic] = "int8"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = f"int8 by row and group of {UNIT}, not rotated"
    values: ClassVar[str] = "codes"
    value_bytes: ClassVar[int] = 1

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        groups = -(-in_features // UNIT)
        return {
            "codes": Field("int8", (groups * UNIT,), 8),
            "scales": Field("float16", (groups,), 16),
        }

    def encode(self, rows: Array) -> Values:
        """Refuses weights whose scale fp16 cannot hold."""
        wide: Floats = np.ascontiguousarray(rows, np.float32)
        check_scales(wide, 127.0)
        groups = -(-wide.shape[1] // UNIT)
        if core is None:
            return self._encoded_rows(wide)
        codes = np.empty((len(wide), groups * UNIT), np.int8)
        scales = np.empty((len(wide), groups), np.float16)
        flat = (codes.reshape(-1).view(np.uint8), scales.reshape(-1).view(np.uint16))
        core.quantise(packing_pool(), core.detect(), self.name, 0, wide, *flat)
        return {"codes": codes, "scales": scales}

    def _encoded_rows(self, rows: Floats) -> Values:
        """The same without the core."""
        groups = _grouped(rows)
        scales = (np.abs(groups).max(axis=-1) / np.float32(127)).astype(np.float16)
        wide = scales.astype(np.float32)
        inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
        codes = np.clip(np.rint(groups * inverse[:, :, None]), -127, 127).astype(np.int8)
        return {"codes": codes.reshape(len(rows), -1), "scales": scales}

    def matmul(self, values: Values, x: Floats) -> Floats:
        """See `product_by_group`."""
        return product_by_group(_grouped(x), values, _widened)

    def decode(self, values: Values, in_features: int) -> Floats:
        codes, scales = _widened(values)
        weights = (codes * scales[:, :, None]).reshape(len(codes), -1)[:, :in_features]
        # A zero has no sign, whatever its scale.
        return np.ascontiguousarray(weights) + np.float32(0)


def _grouped(rows: Floats) -> Floats:
    """(M, K) as groups (M, G, 64), with zeros where the last has no inputs."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % UNIT))).reshape(len(rows), -1, UNIT)


def _widened(values: Values) -> tuple[Floats, Floats]:
    """Codes (rows, G, 64) and scales (rows, G)."""
    codes = values["codes"].reshape(len(values["codes"]), -1, UNIT).astype(np.float32)
    return codes, values["scales"].astype(np.float32)
