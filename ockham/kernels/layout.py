"""What a layer keeps of a sequence, and how much of it a backend holds: `StateSpec`, `GroupLayout`.

Layers with equal specs form a group, which has a pool of its own. A *paged* state has one entry in
each plane for every cell; a *recurrent* one has one entry for a whole sequence, which every token
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from ockham.core.errors import ConfigError

STORED: dict[str, np.dtype[np.generic]] = {
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
}
"""The types of planes, and what holds their bits in NumPy."""


class PlaneSpec(msgspec.Struct, frozen=True):
    """One array of a layer's state: of each cell (or sequence) `heads` rows of `width` elements.

    Raises ConfigError if a size is below one, or there is no such type.
    """

    name: str
    heads: int
    width: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise ConfigError(f"state cannot be stored as {self.dtype!r}: {', '.join(STORED)} can.")
        if self.heads < 1 or self.width < 1:
            raise ConfigError(f"the plane {self.name!r} has a size below one.")

    @property
    def stored(self) -> np.dtype[np.generic]:
        """The type that holds its bits in NumPy."""
        return STORED[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of one cell (or sequence) in one layer."""
        return self.heads * self.width * self.stored.itemsize


class StateSpec(msgspec.Struct, frozen=True):
    """What one layer keeps. `window` is the number of latest cells that a row sees, None for all;
    a recurrent state has none."""

    kind: Literal["paged", "recurrent"]
    planes: tuple[PlaneSpec, ...]
    window: int | None = None

    @classmethod
    def attention(
        cls, kv_heads: int, head_dim: int, dtype: str, window: int | None = None
    ) -> StateSpec:
        """Keys and values in pages."""
        planes = tuple(PlaneSpec(name, kv_heads, head_dim, dtype) for name in ("keys", "values"))
        return cls("paged", planes, window)

    @property
    def nbytes(self) -> int:
        """Bytes of one cell (or sequence) in one layer."""
        return sum(plane.nbytes for plane in self.planes)

    @property
    def uniform(self) -> PlaneSpec:
        """The shape that all planes have. Raises ConfigError if they have not: no backend holds
        pages of planes that differ."""
        first = self.planes[0]
        if any(
            (p.heads, p.width, p.dtype) != (first.heads, first.width, first.dtype)
            for p in self.planes
        ):
            raise ConfigError("the planes of a paged state must have the same shape and type.")
        return first


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """The state of one group of layers, which share a page table: what each of them keeps, in
    `pages` pages of `page_tokens` cells."""

    layers: tuple[int, ...]
    spec: StateSpec
    pages: int
    page_tokens: int

    @property
    def window(self) -> int | None:
        return self.spec.window

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell in all planes of all layers of the group."""
        return len(self.layers) * self.spec.nbytes

    @property
    def page_bytes(self) -> int:
        return self.cell_bytes * self.page_tokens

    def stored_shape(self, cells: int) -> tuple[int, int, int, int, int]:
        """The shape of what `Planes.read` gives of so many cells."""
        plane = self.spec.uniform
        return (len(self.layers), len(self.spec.planes), cells, plane.heads, plane.width)
