"""Another basis for the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from ockham.core.arrays import Doubles
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.stream import (
    absorb_scales,
    hadamard_rotation,
    random_rotation,
    turn_reads,
    turn_writes,
)

NAME = "rotate"


class RotateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind` is the rotation of the stream; `heads` turns the values of each head, too."""

    kind: Literal["hadamard", "random"] = "hadamard"
    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")


@register("transform", NAME, exact=False)
class Rotate:
    """Rotate the residual stream, and the values of each head, so that no channel stands out.

    Norms without scales commute with rotations, so that every output stays what it is (in infinite
    precision), while outliers are spread over all channels and weights of few bits err less. These
    are the rotations R1 and R2 of SpinQuant (Liu et al. 2024, arXiv:2405.16406), here not learned,
    as in QuaRot (Ashkboos et al. 2024, arXiv:2404.00456). Tied embeddings are untied, which costs
    the bytes of a second table.
    """

    saves: ClassVar[tuple[str, ...]] = ("rounding error",)
    Options: ClassVar[type[msgspec.Struct]] = RotateOptions

    def __init__(self, options: RotateOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        model.check_stream(NAME)
        rng = np.random.default_rng(self._options.seed)
        tied = model.head == model.table
        absorb_scales(model)
        basis = self._rotation(model.hidden_size, rng)
        names = [model.table] if model.head == model.table else [model.table, model.head]
        turn_reads(model, names, basis)  # a table's rows are the stream itself
        for block in model.blocks:
            turn_reads(model, block.reads, basis)
            turn_writes(model, block, basis)
            if block.value is not None and self._options.heads:
                _turn_values(model, block.value, block.value_bias, block.writes[0], rng)
        return {"untied": tied and model.head != model.table}

    def _rotation(self, width: int, rng: np.random.Generator) -> Doubles:
        return (random_rotation if self._options.kind == "random" else hadamard_rotation)(
            width, rng
        )


def _turn_values(
    model: Rewritable,
    value: tuple[str, int],
    bias: tuple[str, int] | None,
    output: str,
    rng: np.random.Generator,
) -> None:
    """One rotation for all heads, of their values and of what reads them."""
    size, heads, kv_heads = model.head_dim, model.heads, model.kv_heads
    basis = hadamard_rotation(size, rng)
    for name, first in [value] if bias is None else [value, bias]:
        values = model.get(name)
        own = values[first : first + kv_heads * size]
        by_head = own.reshape(kv_heads, size, -1).astype(np.float64)
        own[:] = np.einsum("hik,ij->hjk", by_head, basis).reshape(own.shape)
        model.put(name, values)
    out = model.get(output).reshape(-1, heads, size).astype(np.float64)
    model.put(output, (out @ basis).reshape(len(out), -1).astype(np.float32))
