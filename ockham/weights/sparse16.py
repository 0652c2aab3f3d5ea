"""Weights in bfloat16 of which only those are stored that are not zero."""

from __future__ import annotations

from typing import ClassVar

import ml_dtypes
import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.registry import register
from ockham.core.seams import Arithmetic, Field, Role, Values
from ockham.weights.blocks import all_finite, product_in_bfloat16
from ockham.weights.sparse import Sparse


@register("format", "sparse16", exact=True, paper="17")
class Sparse16(Sparse):
    """Weights in bf16 that are not zero, beside a bitmask of all; inputs rounded to bf16.

    Flash-LLM (arXiv:2309.10285): a pruned matrix is loaded as it is stored, expanded in registers,
    and multiplied as one without zeros. Takes 16 bits for each weight that is not zero and 1 for
    each weight: 9 bits with half of them zero, against 16 of bf16. It holds any mask, but with
    fewer than 6% zeros it is larger than bf16. Products are bf16's. A pruned checkpoint in bf16 is
    held to the bit.

    `weight`: bfloat16 (rows, K).
    """

    name: ClassVar[str] = "sparse16"
    arithmetic: ClassVar[Arithmetic] = "bf16"
    dtype: ClassVar[str | None] = None
    activations: ClassVar[str] = "bfloat16"
    values: ClassVar[str] = "weight"
    value_bytes: ClassVar[int] = 2

    def beside(self, role: Role, in_features: int) -> str | None:
        """bf16 takes embeddings, head and routers, which are not pruned."""
        return "bf16" if role in ("embedding", "head", "router") else None

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        return {"weight": Field("bfloat16", (in_features,), 16)}

    def encode(self, rows: Array) -> Values:
        with np.errstate(over="ignore"):
            weight = rows.astype(ml_dtypes.bfloat16)
        if rows.dtype.itemsize > weight.dtype.itemsize and not all_finite(weight):
            raise ModelError("there is a value that bfloat16 cannot hold")
        weight[weight == 0] = 0  # a zero has no sign
        return {"weight": weight}

    def matmul(self, values: Values, x: Floats) -> Floats:
        """See `product_in_bfloat16`."""
        return product_in_bfloat16(values["weight"], x)

    def decode(self, values: Values, in_features: int) -> Floats:
        return values["weight"].astype(np.float32)
