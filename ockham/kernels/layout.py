"""What a layer keeps of a sequence, and how much of it a backend holds: `StateSpec`, `GroupLayout`.

Layers with equal specs form a group, which has a pool of its own. A state is in pages: it has one
entry in each plane for every cell, or for what all cells up to a page's end have left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.state_dtype import state_types

STORED: dict[str, np.dtype[np.generic]] = {
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.uint8),
    "int4": np.dtype(np.uint8),
}
"""The types of planes, and what holds their bits in NumPy.

The integers are codes, with a scale for each row (`kernels/reference/stored.py` says what they
mean), held as bytes."""

CODE_BITS = {"int8": 8, "int4": 4}

SCALE_BYTES = 4
"""Behind the codes of a row: their scale, or scale and zero."""

INT4 = "int4-3"
"""Raised whenever codes of 4 bits mean something else, or are laid out or read in another way."""

LATENT = "latent"
"""The name of the plane of which keys and values are the same rows."""

MOST_CODED_WIDTH = 512
"""The kernels sum products of wider rows of codes in too few bits."""


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
        if self.dtype in CODE_BITS and self.width > MOST_CODED_WIDTH:
            raise ConfigError(
                f"heads of {self.width} elements cannot be kept in {self.dtype}: at most "
                f"{MOST_CODED_WIDTH} can. Keep them in bfloat16 (kv_cache_dtype)."
            )
        if self.dtype == "int4" and self.width % 2:
            raise ConfigError(
                f"heads of {self.width} elements cannot be kept in int4, which puts two elements "
                "into a byte: keep them in int8 or bfloat16 (kv_cache_dtype)."
            )

    @property
    def stored(self) -> np.dtype[np.generic]:
        """The type that holds its bits in NumPy."""
        return STORED[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of one cell (or sequence) in one layer."""
        return self.heads * self.row_items * self.stored.itemsize

    @property
    def row_items(self) -> int:
        """How many values of the type `stored` hold a row: one for each element, or the bytes of
        its codes and of their scale."""
        bits = CODE_BITS.get(self.dtype)
        return self.width if bits is None else self.width * bits // 8 + SCALE_BYTES


class StateSpec(msgspec.Struct, frozen=True):
    """What one layer keeps, in pages. `window` is the number of latest cells that a row sees, None
    for all. `of_pass` is the pass through layers that run several times whose rows alone have cells
    (`Recurse`), counted from 0; None where every row has one. Where it keeps `ends`, a page has one
    row, of what its cells and all before them have left."""

    planes: tuple[PlaneSpec, ...]
    window: int | None = None
    of_pass: int | None = None
    ends: bool = False

    @classmethod
    def attention(
        cls,
        kv_heads: int,
        head_dim: int,
        dtype: str,
        window: int | None = None,
        of_pass: int | None = None,
    ) -> StateSpec:
        """Keys and values in pages. `dtype` is as `core.state_dtype.canonical` gives it."""
        types = state_types(dtype)
        planes = tuple(
            PlaneSpec(name, kv_heads, head_dim, each)
            for name, each in zip(("keys", "values"), types, strict=True)
        )
        return cls(planes, window, of_pass)

    @classmethod
    def latent_rows(cls, width: int, dtype: str, window: int | None = None) -> StateSpec:
        """One row of each token for all heads, which is key and value (`LatentInput`). Raises
        ConfigError for a dtype of codes."""
        types = state_types(dtype)
        for each in types:
            if each in CODE_BITS or each != types[0]:
                raise ConfigError(
                    f"the latent rows of this model cannot be kept in {dtype}: keep them in "
                    "bfloat16 or float32 (kv_cache_dtype)."
                )
        return cls((PlaneSpec(LATENT, 1, width, types[0]),), window)

    @classmethod
    def rows(cls, width: int, window: int) -> StateSpec:
        """A row of `width` floats of each token, of which a later row needs the latest `window`,
        its own among them."""
        return cls((PlaneSpec("rows", 1, width, "float32"),), window)

    @classmethod
    def chunk_ends(cls, width: int, page_tokens: int) -> StateSpec:
        """A row of `width` floats for each page, of what all tokens up to its last one have left. A
        later row needs that of the page before its own."""
        planes = (PlaneSpec("ends", 1, width, "float32"),)
        return cls(planes, page_tokens + 1, ends=True)

    @property
    def attends(self) -> bool:
        """Whether there are keys and values."""
        return len(self.planes) > 1 or self.latent

    @property
    def latent(self) -> bool:
        """Whether one plane holds both keys and values: a value is its key."""
        return self.planes[0].name == LATENT

    @property
    def nbytes(self) -> int:
        """Bytes of one cell (or sequence) in one layer."""
        return sum(plane.nbytes for plane in self.planes)

    @property
    def uniform(self) -> PlaneSpec:
        """A plane with the shape that all of them have. Raises ConfigError if they have not, or if
        their types differ and are not all codes: no backend holds pages of such planes."""
        first = self.planes[0]
        coded = all(p.dtype in CODE_BITS for p in self.planes)
        for p in self.planes:
            if (p.heads, p.width) != (first.heads, first.width) or not (
                coded or p.dtype == first.dtype
            ):
                raise ConfigError(
                    "the planes of a paged state must have the same shape, and the same type or "
                    f"each one of {', '.join(CODE_BITS)}."
                )
        return first


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """The state of one group of layers, which share a page table: what each of them keeps, in
    `pages` pages of `page_tokens` cells."""

    layers: tuple[int, ...]
    spec: StateSpec
    pages: int
    page_tokens: int
    mirrors: Floats | None = field(default=None, compare=False)
    """At what the keys of each layer and head are reflected before int4 makes codes of them, and
    the queries that read them alike: (layers, heads, width), as `kernels/reference/stored.py` says.
    Only for keys in int4; None for keys as they are."""

    books: Floats | None = field(default=None, compare=False)
    """A codebook of the keys of each layer and head (`csrc/state/key_book.h`): (layers, heads, 256,
    2 * width + 1), a centroid, the direction that keys of it are told by, and the offset. None
    where no rows choose by looking scores up."""

    @property
    def window(self) -> int | None:
        return self.spec.window

    @property
    def page_rows(self) -> int:
        """Rows of a page: one for each of its cells, or one for all."""
        return 1 if self.spec.ends else self.page_tokens

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell in all planes of all layers of the group; a cell's share of what is
        kept of all cells of a page."""
        return self.page_bytes // self.page_tokens

    @property
    def page_bytes(self) -> int:
        return len(self.layers) * self.spec.nbytes * self.page_rows

    def stored_shape(self, cells: int) -> tuple[int, int, int, int, int]:
        """The shape of what `Planes.read` gives of so many cells: (layers, planes, cells, heads,
        items of a row). If the rows of the planes have other lengths, there is one plane, in which
        each row of the first stands before that of the second."""
        planes, heads = self.spec.planes, self.spec.uniform.heads
        items = [plane.row_items for plane in planes]
        if len(set(items)) == 1:
            return (len(self.layers), len(planes), cells, heads, items[0])
        return (len(self.layers), 1, cells, heads, sum(items))
