"""Reading a file of packed weights, whose layout stands in layout.py.

Every byte is read and compared with the digest that was written, and only then are the large arrays
mapped: a file that was damaged or cut short gives a sentence, where a mapping alone would kill the
process or go unnoticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Layout, Linear, Role
from ockham.kernels.cores import allowed_cores
from ockham.kernels.layouts import find_layout
from ockham.kernels.memory import as_bytes
from ockham.model.files.safetensors import SafetensorsFile, Tensor
from ockham.model.files.untrusted import parse_json
from ockham.model.packed.digest import BLOCK_BYTES, array_digest, block_sums, weights_digest
from ockham.model.packed.layout import (
    DTYPES,
    PADDING,
    UNNAMED_LAYOUT,
    PackedWeights,
    array_facts,
    key_of,
    matrix_facts,
    vector_key,
)
from ockham.model.packed.packing import Packing
from ockham.model.packed.threads import in_threads
from ockham.model.program.weights import (
    Part,
    UnloadedLinear,
    VectorPart,
    matrix_shape,
    vector_length,
)
from ockham.weights.stored import StoredMatrix, read_record

READ_BYTES = 2 * BLOCK_BYTES
"""Bytes that are read at a time, so that they are still in the cache when they are digested."""


class PackedFile:
    """An open file of packed weights. `again` says what to do if it is damaged."""

    def __init__(self, path: Path, again: str) -> None:
        """Raises ModelError if it is missing, its header is damaged, or nothing here reads its
        layout."""
        self.path = path
        self.again = again
        self.file = SafetensorsFile(path)
        try:
            self.matrix_layout = self._find_layout()
            self.matrices = self._read_matrices()
        except BaseException:
            self.file.close()
            raise
        self.tensors = {n: t for n, t in self.file.tensors.items() if not n.startswith(PADDING)}
        keys = {name.rpartition("/")[0] for name in self.tensors}
        self._names = {part.partition("[")[0] for key in keys for part in key.split("+")}

    def close(self) -> None:
        self.file.close()

    def has(self, name: str) -> bool:
        return name in self._names

    def matrix(self, parts: Sequence[Part]) -> tuple[StoredMatrix, Linear, dict[str, Tensor]]:
        """What is known of a matrix, its zeroed arrays, and the tensors that fill them.

        Raises ModelError if it is missing, incomplete, or of another shape."""
        key, shape = key_of(parts), matrix_shape(parts)
        stored = self.matrices.get(key)
        if stored is None:
            raise self._missing(key)
        if (stored.out_features, stored.in_features) != shape:
            raise ModelError(
                f"tensor {key!r} of {self.path} has the shape "
                f"{[stored.out_features, stored.in_features]}, but config.json implies "
                f"{list(shape)}."
            )
        try:
            blank = stored.blank(self.matrix_layout)
        except (ModelError, ConfigError) as error:
            raise ModelError(f"tensor {key!r} of {self.path}: {error}") from None
        tensors = {
            name: self.tensor(f"{key}/{name}", array) for name, array in blank.arrays.items()
        }
        return stored, blank, tensors

    def tensor(self, name: str, array: Array) -> Tensor:
        """A tensor of the file that has an array's dtype and shape."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self._missing(name)
        if (tensor.dtype, tensor.shape) != (DTYPES[array.dtype.name], array.shape):
            raise ModelError(
                f"tensor {name!r} of {self.path} is {tensor.dtype} {list(tensor.shape)}, but "
                f"should be {DTYPES[array.dtype.name]} {list(array.shape)}; {self.again}."
            )
        return tensor

    def digest(self) -> str:
        """The digest of all weights, for which every byte of them is read, by all cores."""
        pieces = [
            (tensor, start)
            for tensor in self.tensors.values()
            for start in range(0, tensor.nbytes, READ_BYTES)
        ]
        sums = in_threads(self._sums, pieces, allowed_cores())
        by_name: dict[str, list[bytes]] = {name: [] for name in self.tensors}
        for (tensor, _), each in zip(pieces, sums, strict=True):
            by_name[tensor.name].append(each)
        arrays = {
            name: array_facts(
                tensor.dtype, tensor.shape, array_digest(tensor.nbytes, by_name[name])
            )
            for name, tensor in self.tensors.items()
        }
        return weights_digest({k: matrix_facts(m) for k, m in self.matrices.items()}, arrays)

    def check(self, expected: str) -> None:
        """Raise ModelError unless the weights have this digest."""
        if self.digest() != expected:
            raise ModelError(
                f"the weights in {self.path} are not those that were written: the file is damaged; "
                f"{self.again}."
            )

    def fill(self, array: Array, tensor: Tensor) -> bool:
        """Fill an array with a tensor: by mapping it, then True, or else by reading it."""
        memory = as_bytes(array)
        if self.file.map_into(memory, tensor.start):
            return True
        self.file.read_into(memory.data, tensor.start, f"tensor {tensor.name!r}")
        return False

    def _sums(self, piece: tuple[Tensor, int]) -> bytes:
        tensor, start = piece
        buffer = np.empty(min(READ_BYTES, tensor.nbytes - start), np.uint8)
        self.file.read_into(buffer.data, tensor.start + start, f"tensor {tensor.name!r}")
        return block_sums(buffer)

    def _missing(self, name: str) -> ModelError:
        return ModelError(f"the packed weights {self.path} have no tensor {name!r}; {self.again}.")

    def _find_layout(self) -> Layout:
        name = self.file.metadata.get("layout", UNNAMED_LAYOUT)
        found = find_layout(name)
        if found is None:
            raise ModelError(
                f"{self.path} holds weights in the layout {name!r}, which this Ockham does not "
                f"read here; {self.again}."
            )
        return found

    def _read_matrices(self) -> dict[str, StoredMatrix]:
        try:
            records = parse_json(
                self.file.metadata["matrices"].encode(), f"the record of matrices in {self.path}"
            )
            items = records.items()
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ModelError(
                f"{self.path} does not say what its matrices are; {self.again}."
            ) from None
        matrices = {}
        for key, record in items:
            try:
                matrices[key] = read_record(record)
            except ValueError as error:
                raise ModelError(
                    f"tensor {key!r} of {self.path} cannot be read: {error}."
                ) from None
        return matrices


class PackedScale:
    """Checks that every array is there, and adds up what they take."""

    def __init__(self, file: PackedFile) -> None:
        self.bytes = 0
        self.parameters = 0
        self.used: set[str] = set()
        self.formats: Counter[str] = Counter()
        self._file = file

    def has(self, name: str) -> bool:
        return self._file.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        stored, blank, tensors = self._file.matrix(parts)
        self.used.update(tensor.name for tensor in tensors.values())
        self.bytes += blank.nbytes
        self.parameters += stored.out_features * stored.in_features
        for piece in stored.parts or (stored,):
            self.formats[Packing(piece.made(), rank=piece.rank).describe()] += 1
        return UnloadedLinear(stored.format, *matrix_shape(parts), blank.nbytes)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        values = np.empty(vector_length(parts), np.float32)
        self.used.add(self._file.tensor(f"{vector_key(parts)}/vector", values).name)
        self.bytes += values.nbytes
        self.parameters += len(values)
        return np.empty(0, np.float32)

    def notes(self) -> list[str]:
        return []


class PackedLoader:
    """Takes every array from a file whose weights have a known digest."""

    def __init__(self, file: PackedFile, digest: str) -> None:
        """Raises ModelError if the file's weights have another digest: it is damaged."""
        file.check(digest)
        self.packed = PackedWeights(file.matrix_layout)
        self.mapped: list[Array] = []
        self._file = file
        self._digest = digest

    def has(self, name: str) -> bool:
        return self._file.has(name)

    def digest(self) -> str:
        return self._digest

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        _, blank, tensors = self._file.matrix(parts)
        for name, array in blank.arrays.items():
            if self._file.fill(array, tensors[name]):
                self.mapped.append(array)
        return blank

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        values = np.empty(vector_length(parts), np.float32)
        self._file.fill(values, self._file.tensor(f"{vector_key(parts)}/vector", values))
        return values
