"""How a matrix of weights is stored and multiplied: `Format`, and `Linear`, what it packs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats
from ockham.core.quantised import BlockRows, Encoding, QuantisedRows

Role = Literal["embedding", "head", "qkv", "attention_output", "router", "gate_up", "down"]
"""What a matrix is for: a format may leave some roles to another. The table of embeddings may be
the head, too."""


Arithmetic = Literal["fp32", "bf16", "int8"]
"""What a product multiplies, as the native core's rates name it."""


class Linear(Protocol):
    """A weight matrix (out_features, in_features) as some format stores it."""

    format: str
    out_features: int
    in_features: int

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name, as the format's docstring lays them out."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one product with this matrix must read."""
        ...

    def matmul(self, x: Floats) -> Floats:
        """x (M, in_features) times the transposed matrix: (M, out_features), accumulated in fp32.

        This is the format's meaning: the plain twin that compiled kernels are tested against."""
        ...

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        """Rows `ids` of the matrix as fp32: (len(ids), in_features). For embedding tables."""
        ...


class Format(Protocol):
    """How a linear layer's weights are stored and multiplied.

    `activations` is the precision in which the input enters the product; it is part of the
    format's definition, because it decides the result. `arithmetic` is what its products run on.
    `dtype` is the dtype whose values the format holds one by one, as `EngineConfig.dtype` names it,
    which then picks the format; None for a format that quantises.

    A packed matrix of the format lies in a file as its arrays, of shapes that follow from its
    shape, from `group`, and from whether it has zero points (an array "zero"). `group` is the
    number of inputs that share a scale, where matrices of the format differ in it, and else 0. The
    native core multiplies matrices of a format by the kernels of the kind that bears its name.
    """

    name: ClassVar[str]
    activations: ClassVar[str]
    arithmetic: ClassVar[Arithmetic]
    dtype: ClassVar[str | None]

    @property
    def group(self) -> int: ...

    @classmethod
    def of_group(cls, group: int) -> Self:
        """The format whose matrices have this group. Raises ValueError if there is none."""
        ...

    @classmethod
    def group_of(cls, linear: Linear) -> int:
        """The group of a packed matrix of this format, read off its arrays."""
        ...

    def empty(self, out_features: int, in_features: int, zeros: bool = False) -> Linear:
        """A matrix of zeroed arrays, in panels where the format has them, of which no page is
        touched yet; with zero points where asked. Raises ModelError as `packed_bytes` does."""
        ...

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a packed matrix of this shape takes. Raises ModelError for a shape that the
        format cannot have."""
        ...

    def pack(self, out_features: int, in_features: int, blocks: Iterable[Array]) -> Linear:
        """Pack a matrix that comes as consecutive blocks of rows, in the checkpoint's dtype.

        Blocks are consumed one at a time, so that weights are never held twice. Raises ModelError
        if they do not add up to the shape, or hold NaN or infinity.
        """
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

    def fit(self, rows: Floats, moments: Floats) -> Linear:
        """Pack weights (N, K) for inputs x whose second moments are the sum of x^T x: (K, K).

        Raises ModelError for moments that are not finite, and weights that it cannot hold."""
        ...


class QuantisedFormat(Format, Protocol):
    """A format that can also take over matrices that a checkpoint stores quantised, as they are."""

    @classmethod
    def holding(cls, encoding: Encoding, in_features: int) -> QuantisedFormat | None:
        """The format with the settings that hold every value of such a matrix exactly, or None."""
        ...

    def adopted_bytes(self, out_features: int, in_features: int, encoding: Encoding) -> int:
        """Bytes that an adopted matrix of this shape takes."""
        ...

    def adopt(
        self,
        out_features: int,
        in_features: int,
        encoding: Encoding,
        blocks: Iterable[QuantisedRows],
    ) -> Linear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        The encoding is one for which `holding` gave this format. Raises ModelError if the blocks do
        not add up to the shape, or hold scales that are not finite, or zero points where the
        encoding has none.
        """
        ...


class BlockFormat(Format, Protocol):
    """A format that takes over one block type of GGUF files, as it is."""

    def adopt(self, out_features: int, in_features: int, blocks: Iterable[BlockRows]) -> Linear:
        """Take over a matrix that comes as consecutive blocks of rows, changing no value.

        Raises ModelError if they do not add up to the shape, or hold scales that are not finite.
        """
        ...
