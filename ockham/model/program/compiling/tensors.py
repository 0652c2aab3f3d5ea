"""A program that is being compiled, and the tensors that it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Linear, MatrixPart, Role
from ockham.kernels.ops import (
    Norm,
    Operation,
    Rope,
)
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, Weights

SHORTCUT = "shortcut"
"""The name of a branch's matrix on the residual stream, in the module of the branch."""


MATRIX_NORM_EPS = 1e-6


class Compiling:
    """What the operations of a program have in common while they are made: the checkpoint's names,
    what was made so far, and where modules stand in it."""

    def __init__(self, description: ModelDescription, weights: Weights, max_model_len: int) -> None:
        self.d = description
        self.record = description.architecture
        self.weights = weights
        self._ropes: dict[str, Rope] = {}
        self._vectors: dict[str, Floats] = {}
        self._max_model_len = max_model_len
        self.ops: list[Operation] = []
        self.breakpoints: dict[str, int] = {}
        self.parts: dict[str, MatrixPart] = {}
        table = self.record.table + ".weight"
        self.prefix = self.choose([p + table for p in self.record.prefixes]).removesuffix(table)

    def mark(self, name: str) -> None:
        self.breakpoints[name] = len(self.ops)

    def shortcut(self, beside: str) -> Linear | None:
        """The matrix on the residual stream of the branch that ends in, or begins with, the matrix
        of this name."""
        if not self.d.shortcuts:
            return None
        size, module = self.d.hidden_size, beside.rpartition(".")[0]
        return self.matrix(f"{module}.{SHORTCUT}", size, size, "shortcut")

    def stack(self, name: str, count: int, rows: int, columns: int, role: Role) -> list[Linear]:
        shape = (count, rows, columns)
        return [
            self.weights.linear([Part(name, shape, n * rows, (n + 1) * rows)], role)
            for n in range(count)
        ]

    def layer(self, layer: int) -> str:
        return f"{self.prefix}{self.record.layers}{self.d.stored(layer)}."

    def choose(self, names: list[str]) -> str:
        """The first of these names that the checkpoint has."""
        for name in names:
            if self.weights.has(name):
                return name
        raise ModelError(f"the checkpoint has no tensor {' or '.join(map(repr, names))}.")

    def matrix(self, name: str, rows: int, columns: int, role: Role) -> Linear:
        return self.weights.linear([Part(name + ".weight", (rows, columns), 0, rows)], role)

    def packed(
        self,
        prefix: str,
        names: tuple[str, ...],
        widths: tuple[int, ...],
        columns: int,
        role: Role,
        pairs: tuple[tuple[int, int] | None, ...] = (),
    ) -> Linear:
        """Projections of these widths packed as one matrix; a single name is stored fused. `pairs`
        are those of each (`Part.pairs`)."""
        widths = widths if len(names) > 1 else (sum(widths),)
        return self.weights.linear(
            [
                Part(f"{prefix}{name}.weight", (rows, columns), 0, rows, own)
                for name, rows, own in zip(
                    names, widths, (*pairs, *(None,) * len(names)), strict=False
                )
            ],
            role,
        )

    def adaptable(
        self,
        layer: int,
        field: str,
        prefix: str,
        names: tuple[str, ...],
        widths: tuple[int, ...],
        columns: int,
        pairs: tuple[tuple[int, int] | None, ...] = (),
    ) -> None:
        """Note where modules of these widths stand in the matrix of an operation's field: no module
        of layers that run several times, as it stands in several, and none that has a norm of its
        own, behind which an adapter would not read."""
        if self.d.passes > 1 and 0 < layer < self.d.layers - 1:
            return
        if self.record.matrix_norm is not None:
            return
        widths, first = widths if len(names) > 1 else (sum(widths),), 0
        role = f"layer.{layer}.{field}"
        for name, rows, own in zip(names, widths, (*pairs, *(None,) * len(names)), strict=False):
            self.parts[prefix + name] = MatrixPart(role, first, rows, columns, own)
            first += rows

    def packed_bias(self, prefix: str, names: tuple[str, ...], widths: tuple[int, ...]) -> Floats:
        widths = widths if len(names) > 1 else (sum(widths),)
        parts = [
            (f"{prefix}{name}.bias", (rows,)) for name, rows in zip(names, widths, strict=True)
        ]
        return self.weights.vector(parts)

    def bias(self, name: str, rows: int) -> Floats:
        return self.weights.vector([(name + ".bias", (rows,))])

    def norm(
        self, prefix: str, name: str | None, width: int | None = None, multiplier: float = 1.0
    ) -> Norm | None:
        """A norm, if it has a name, of what is multiplied then."""
        if name is None:
            assert multiplier == 1.0, "there is a norm whose weights are multiplied"
            return None
        shape, weight, bias = (width or self.d.hidden_size,), "weight", "bias"
        # Old checkpoints of BERT have TensorFlow's names.
        if self.weights.has(f"{prefix}{name}.gamma"):
            weight, bias = "gamma", "beta"
        weights = self.weights.vector(
            [(f"{prefix}{name}.{weight}", shape)], self.record.norm_offset
        )
        added = (
            self.weights.vector([(f"{prefix}{name}.{bias}", shape)]) if self.d.norm_bias else None
        )
        if multiplier != 1.0:
            weights = weights * np.float32(multiplier)
            added = None if added is None else added * np.float32(multiplier)
        return Norm(weights, self.d.norm_eps, self.record.norm_kind, added)

    def read_norm(self, matrix: str, norm: Norm | None, width: int) -> Norm | None:
        """The norm of what a matrix multiplies: that of its branch, and then its own."""
        name = self.record.matrix_norm
        if name is None:
            return norm
        weight = self.weights.vector([(f"{matrix}.{name}.weight", (width,))])
        own = Norm(weight, MATRIX_NORM_EPS)
        return own if norm is None else replace(norm, then=own)

    def vector_once(self, name: str, shape: tuple[int, ...]) -> Floats:
        """A vector that several layers share."""
        if name not in self._vectors:
            self._vectors[name] = self.weights.vector([(name, shape)])
        return self._vectors[name]

    def plain_norm(self, width: int) -> Norm:
        """One without weights."""
        return Norm(np.ones(width, np.float32), self.d.norm_eps)

    def rope(self, layer: int) -> Rope | None:
        variant = self.d.ropes[layer]
        if variant is None:
            return None
        key = variant.describe()
        if key not in self._ropes:
            self._ropes[key] = variant.fix(self._max_model_len)
        return self._ropes[key]
