"""What a matrix of weights means, how it is laid out, and what comes of that: `Format`, `Layout`,
`Linear`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.quantised import BlockRows, Encoding, QuantisedRows

Role = Literal[
    "embedding",
    "head",
    "qkv",
    "attention_output",
    "router",
    "gate_up",
    "down",
    "positions",
    "pooled",
    "shortcut",
]
"""What a matrix is for: a format may leave some roles to another. The table of embeddings may be
the head, too. Tables of positions and what is multiplied with pooled hidden states are small, and
are not quantised. Shortcuts are packed as routers are, since all that follows passes them."""


Arithmetic = Literal["fp32", "bf16", "int8"]
"""What a product multiplies, as the native core's rates name it."""


Values = dict[str, Array]
"""Consecutive rows of a matrix as a format stores them: arrays by field, whose first axis are the
rows."""


@dataclass(frozen=True, slots=True)
class Field:
    """What a format stores of one row under one name. `bits` are those that a value needs, where
    its dtype has more."""

    dtype: str
    shape: tuple[int, ...]
    bits: int


class Linear(Protocol):
    """A weight matrix (out_features, in_features) in some format, as some layout holds it."""

    format: str
    out_features: int
    in_features: int

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name, as the layout has them."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one product with this matrix must read."""
        ...

    def matmul(self, x: Floats) -> Floats:
        """x (M, in_features) times the transposed matrix: (M, out_features), accumulated in
        fp32."""
        ...

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        """Rows `ids` of the matrix as fp32: (len(ids), in_features). For embedding tables."""
        ...


class FillableLinear(Linear, Protocol):
    """A matrix whose rows are stored one piece after another. `group` and `zeros` are what
    `Layout.blank` was asked for."""

    group: int
    zeros: bool

    def fill(self, first: int, values: Values) -> None:
        """Store rows from `first` on, as the format encoded them."""
        ...


class Format(Protocol):
    """What a linear layer's weights mean: which values are stored, and what a product with them is.

    A format knows no backend: each lays the values out for itself (`Layout`). `activations` is the
    precision in which the input enters the product; it is part of the format's definition, because
    it decides the result. `arithmetic` is what its products run on. `dtype` is the dtype whose
    values the format holds one by one, as `EngineConfig.dtype` names it, which then picks the
    format; None for a format that quantises. `group` is what else must be known of a matrix where
    matrices of the format differ: the number of inputs that share a scale, or how much room what is
    stored takes (`SizedFormat`)."""

    name: ClassVar[str]
    arithmetic: ClassVar[Arithmetic]
    dtype: ClassVar[str | None]

    @property
    def activations(self) -> str: ...

    @property
    def group(self) -> int: ...

    @classmethod
    def of_group(cls, group: int) -> Self:
        """The format whose matrices have this group. Raises ValueError if there is none."""
        ...

    def fields(self, in_features: int, zeros: bool = False) -> dict[str, Field]:
        """What is stored of a row, with zero points where asked. Raises ModelError for a number of
        inputs that the format cannot have."""
        ...

    def encode(self, rows: Array) -> Values:
        """Rows of finite floats (rows, in_features), of any dtype, as they are stored. Raises
        ModelError for values that the format cannot hold."""
        ...

    def matmul(self, values: Values, x: Floats) -> Floats:
        """x (M, in_features) times the transposed rows: (M, rows), accumulated in fp32.

        This is the format's meaning: the plain twin that compiled kernels are tested against."""
        ...

    def decode(self, values: Values, in_features: int) -> Floats:
        """The rows as fp32: (rows, in_features)."""
        ...

    def pack(
        self,
        out_features: int,
        in_features: int,
        blocks: Iterable[Array],
        layout: Layout = ...,
    ) -> FillableLinear:
        """Pack a matrix that comes as consecutive blocks of rows, in the checkpoint's dtype.

        Blocks are consumed one at a time, so that weights are never held twice. Raises ModelError
        if they do not add up to the shape, or hold NaN or infinity.
        """
        ...


class Layout(Protocol):
    """How a backend lays out matrices. `name` has a version: what lies in a file names it.

    `multiple`: rows are filled by so many at a time, and a matrix is padded to whole multiples.
    `cached` says that laying out takes long enough to be done once and kept.
    """

    name: str
    multiple: int
    cached: bool

    def holds(self, format_name: str) -> bool:
        """Whether matrices of a format can be laid out."""
        ...

    def nbytes(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool = False
    ) -> int:
        """Bytes that a matrix takes. Raises as `blank` does."""
        ...

    def blank(
        self, weight_format: Format, out_features: int, in_features: int, zeros: bool = False
    ) -> FillableLinear:
        """A matrix of zeroed arrays, of which no page is touched yet; with zero points where asked.

        Raises ModelError for a shape that the format cannot have, and ConfigError for a format that
        this layout cannot hold."""
        ...


@runtime_checkable
class MixedFormat(Format, Protocol):
    """A format that leaves some matrices of a model that is packed in it to other formats."""

    def beside(self, role: Role, in_features: int) -> str | None:
        """The name of the format that takes such a matrix; None for this one."""
        ...


@runtime_checkable
class FittedFormat(Format, Protocol):
    """A format whose weights can be fitted to the inputs that they have on a text."""

    def alone(self) -> FittedFormat:
        """The format to fit weights in, where fitting makes some other formats beside it
        needless."""
        ...

    def fit(self, rows: Floats, moments: Floats, layout: Layout = ...) -> Linear:
        """Pack weights (N, K) for inputs x whose second moments are the sum of x^T x: (K, K).

        Raises ModelError for moments that are not finite, and weights that it cannot hold."""
        ...


@runtime_checkable
class SizedFormat(Format, Protocol):
    """A format whose matrices take room by their values. `group` says how much, in units of its
    own; one that was made by its name has room for any values."""

    def sized(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> SizedFormat:
        """The format with as much room as `pack` would give a matrix of these rows. Raises
        ModelError as `pack` does."""
        ...


class QuantisedFormat(Format, Protocol):
    """A format that can also take over matrices that a checkpoint stores quantised, as they are."""

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> QuantisedFormat | None:
        """The format with the settings that hold every value of such a matrix exactly, or None."""
        ...

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
        layout: Layout = ...,
    ) -> Linear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        The encoding is one for which `holding` gave this format. Raises ModelError if the blocks do
        not add up to the shape, or hold scales that are not finite, or zero points where the
        encoding has none.
        """
        ...


class BlockFormat(Format, Protocol):
    """A format that takes over one block type of GGUF files, as it is."""

    def adopt(
        self,
        out_features: int,
        in_features: int,
        blocks: Iterable[BlockRows],
        layout: Layout = ...,
    ) -> Linear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        Raises ModelError if they do not add up to the shape, or hold scales that are not finite.
        """
        ...
