"""What is added to the products of a model for the rows of some requests: `Adapter`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Protocol

import msgspec

from ockham.core.arrays import Floats
from ockham.core.asks import AdapterAsk

AdapterDtype = Literal["int8", "bfloat16", "float32"]
"""What A and B are rounded to; "int8" has a scale for each rank."""


class MatrixPart(msgspec.Struct, frozen=True):
    """Where a checkpoint's matrix stands in a program: the outputs [first, first + outputs) of the
    matrix of a role ("layer.3.qkv"). With `pairs`, the size of a head and how many
    elements of it are rotated, the checkpoint and its adapters have outputs that are rotated
    together as neighbours, and the program has them half of what is rotated apart."""

    role: str
    first: int
    outputs: int
    inputs: int
    pairs: tuple[int, int] | None = None


class LowRank(msgspec.Struct, frozen=True):
    """The sum scale * B (A x), which is added to a part of a product with x, in fp32.

    `read` gives A (rank, inputs) and B (outputs, rank) in fp32. Raises ModelError for files that
    are damaged."""

    part: MatrixPart
    rank: int
    scale: float
    read: Callable[[], tuple[Floats, Floats]]

    @property
    def parameters(self) -> int:
        return self.rank * (self.part.inputs + self.part.outputs)


class FoundAdapter(msgspec.Struct, frozen=True):
    """An adapter whose files were checked against a model and not yet read.

    `digest` names what the files hold. `dtype` is what A and B are rounded to.
    """

    digest: str
    sums: tuple[LowRank, ...]
    dtype: AdapterDtype
    close: Callable[[], None]
    """Closes the files. Nothing can be read afterwards."""

    @property
    def flops(self) -> int:
        """FLOPs that a row costs more."""
        return 2 * sum(each.parameters for each in self.sums)


class Adapter(Protocol):
    """Finds the adapters that requests ask for. At most `most_running` different ones are used by
    the requests that run at once, and `most_held` are in memory."""

    name: ClassVar[str]

    @property
    def most_running(self) -> int: ...

    @property
    def most_held(self) -> int: ...

    def reserved_bytes(self, parts: Mapping[str, MatrixPart], dtype: AdapterDtype) -> int:
        """The most that `most_held` adapters take beside a model like that of `attach`."""
        ...

    def attach(self, parts: Mapping[str, MatrixPart], dtype: AdapterDtype) -> None:
        """Adapters are for a model of these matrices, by the checkpoint's names of their modules.
        `dtype` is as precise as the model's own weights."""
        ...

    def version(self, ask: AdapterAsk) -> str:
        """What tells an adapter, as its files are now, from others. Reads nothing."""
        ...

    def check(self, ask: AdapterAsk) -> None:
        """Look at an adapter's files, but not at its weights. Raises ModelError for one that does
        not fit the model."""
        ...

    def find(self, ask: AdapterAsk) -> FoundAdapter:
        """The same, and what the files hold. Reads them whole; may be called in any thread. Raises
        ModelError."""
        ...

    def identity(self, ask: AdapterAsk) -> str:
        """The digest of what the files hold."""
        ...
