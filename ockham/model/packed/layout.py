"""Packed weights by name, and how they lie in a file.

`ockham convert` and the cache of packed weights write a safetensors file that holds, for each
matrix that the compiler asks for, its arrays as a backend lays them out, such as `KEY/weight`,
`KEY/scale`, `KEY/zero`; and each vector as `KEY/vector`, float32, as it is used (with the offset of
its norm). KEY names the tensors of the original checkpoint that were packed together, joined by +,
with [start:stop] where only some of their rows were taken. `__metadata__` has under "matrices" what
else must be known of each (`StoredMatrix`), and under "layout" the name of the layout. Every array
starts at a multiple of ALIGNMENT, so that it can be mapped; what lies between is a tensor named
`__padding__/N`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Layout as MatrixLayout
from ockham.core.seams import Linear
from ockham.kernels.native import core, packing_pool
from ockham.model.packed.digest import digest_of, weights_digest
from ockham.model.program.weights import Part, VectorPart
from ockham.weights.stored import StoredMatrix, stored_matrix

METHOD = "ockham"
"""quant_method of a converted directory's config.json, and the format of the file's metadata."""

VERSION = 3
"""Raised whenever the layout of the file changes. How arrays are laid out is named by the file."""

UNNAMED_LAYOUT = "cpu-1"
"""The layout of files that name none: the only one there was when they were written."""

ALIGNMENT = 4096
"""A page of memory."""

PADDING = "__padding__/"

DTYPES = {
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "float32": "F32",
    "bfloat16": "BF16",
}
"""NumPy's name of an array's dtype -> that of safetensors."""


def key_of(parts: Sequence[Part]) -> str:
    """The KEY of a matrix."""
    spelled = []
    for part in parts:
        whole = part.start == 0 and part.stop == math.prod(part.shape[:-1])
        spelled.append(part.name if whole else f"{part.name}[{part.start}:{part.stop}]")
        if part.turned:
            spelled[-1] += ".T"
    return "+".join(spelled)


def vector_key(parts: Sequence[VectorPart]) -> str:
    """The KEY of a vector."""
    return "+".join(name for name, _ in parts)


class Layout:
    """Which arrays a file holds, in order, and where; `matrix_layout` names how those of matrices
    are laid out."""

    def __init__(self, matrix_layout: str) -> None:
        self.matrix_layout = matrix_layout
        self.matrices: dict[str, StoredMatrix] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.nbytes = 0
        """Bytes of the arrays, without what pads them."""
        self._end = 0

    def add_matrix(self, key: str, matrix: StoredMatrix, arrays: Mapping[str, Array]) -> None:
        """Raises ModelError if the key stands for another matrix already."""
        if key in self.matrices:
            raise ModelError(f"tensor {key!r} is used twice; such a model cannot be converted.")
        self.matrices[key] = matrix
        for name, array in arrays.items():
            self._add(f"{key}/{name}", DTYPES[array.dtype.name], array.shape, array.nbytes)

    def add_vector(self, key: str, values: Floats) -> None:
        self._add(f"{key}/vector", "F32", values.shape, values.nbytes)

    def header(self) -> bytes:
        """The header, padded: the data follow."""
        records = {key: matrix.record() for key, matrix in self.matrices.items()}
        metadata = {
            "format": METHOD,
            "version": str(VERSION),
            "layout": self.matrix_layout,
            "matrices": json.dumps(records),
        }
        header = json.dumps({"__metadata__": metadata, **self.entries}).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        return len(header).to_bytes(8, "little") + header

    @property
    def data_bytes(self) -> int:
        """Bytes of the file after its header."""
        return self._end

    def start(self, name: str) -> int:
        """Where in the data an array starts."""
        return int(self.entries[name]["data_offsets"][0])

    def _add(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        missing = -self._end % ALIGNMENT
        if missing:
            self._entry(f"{PADDING}{len(self.entries)}", "U8", (missing,), missing)
        self._entry(name, dtype, shape, nbytes)
        self.nbytes += nbytes

    def _entry(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        self.entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self._end, self._end + nbytes],
        }
        self._end += nbytes


class PackedWeights:
    """Matrices and vectors as a loader packed them, by key, in the order of packing; all matrices
    in one layout."""

    def __init__(self, matrix_layout: MatrixLayout) -> None:
        self.matrix_layout = matrix_layout.name
        self.matrices: dict[str, Linear] = {}
        self.vectors: dict[str, Floats] = {}
        self._matrix_facts: dict[str, list[Any]] = {}
        self._array_facts: dict[str, list[Any]] = {}

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """All arrays as the file holds them, in the order of its layout."""
        for key, linear in self.matrices.items():
            for name, array in linear.arrays.items():
                yield f"{key}/{name}", array
        for key, values in self.vectors.items():
            yield f"{key}/vector", values

    def layout(self) -> Layout:
        """Raises ModelError for a format that is not written to disk."""
        layout = Layout(self.matrix_layout)
        for key, linear in self.matrices.items():
            layout.add_matrix(key, stored_matrix(linear), linear.arrays)
        for key, values in self.vectors.items():
            layout.add_vector(key, values)
        return layout

    def let_go(self) -> None:
        """Hold nothing of what was packed so far any longer, but count it in the digest."""
        pool = packing_pool() if core is not None else None
        for key, linear in self.matrices.items():
            self._matrix_facts[key] = matrix_facts(linear)
        for name, array in self.arrays():
            facts = array_facts(DTYPES[array.dtype.name], array.shape, digest_of(array, pool))
            self._array_facts[name] = facts
        self.matrices, self.vectors = {}, {}

    def digest(self) -> str:
        """The digest of all that was packed: the same as that of a file which holds it."""
        held = self.matrices, self.vectors
        self.let_go()
        self.matrices, self.vectors = held
        return weights_digest(self._matrix_facts, self._array_facts)


def matrix_facts(matrix: Linear | StoredMatrix) -> list[Any]:
    """What a digest of weights says of a matrix besides its arrays."""
    return [matrix.format, matrix.out_features, matrix.in_features]


def array_facts(dtype: str, shape: tuple[int, ...], digest: str) -> list[Any]:
    """What a digest of weights says of an array."""
    return [dtype, list(shape), digest]
