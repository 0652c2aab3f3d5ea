"""Where weights are read from, and what the compiler runs against: a scale, and a loader."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.core.seams import Linear, Role
from ockham.kernels.corrected import correction_bytes
from ockham.model.checkpoint.pairs import Rows, in_halves
from ockham.model.files.weights_file import WeightsFile
from ockham.model.packed.layout import PackedWeights, key_of, vector_key
from ockham.model.packed.packing import Packer, Packing, Stored
from ockham.model.program.weights import (
    Part,
    UnloadedLinear,
    VectorPart,
    Weights,
    matrix_shape,
    vector_length,
)
from ockham.weights.correcting import corrected
from ockham.weights.stacked import StackedLinear

_T = TypeVar("_T")


class Measured(Weights, Protocol):
    """What a run of the compiler against a checkpoint's headers found.

    `bytes` is what the packed weights take; `used` are the tensors of the files that were asked
    for; `formats` counts the matrices by what decides their products' bits; `notes` says in
    sentences what became of matrices that the checkpoint quantised.
    """

    bytes: int
    parameters: int
    used: set[str]
    formats: Counter[str]

    def notes(self) -> list[str]: ...


class LoadedWeights(Weights, Protocol):
    """Weights with values.

    `packed` are those that were packed here, and may be kept; `mapped` the arrays that show pages
    of a file.
    """

    packed: PackedWeights
    mapped: list[Array]

    def digest(self) -> str:
        """What names the weights that were asked for, by their content: the digest of their packed
        arrays, the same whether they were packed just now or read from a file of packed weights."""
        ...


class Source(Protocol):
    """The weights of a model, whatever files they stand in.

    `harmless` are the endings of names of tensors that such files carry and no one needs,
    `quantised_as` the quantization that the files were converted to beforehand.
    """

    harmless: tuple[str, ...]
    quantised_as: str | None

    @property
    def files(self) -> Sequence[WeightsFile]:
        """The open files of weights."""
        ...

    def names(self) -> Collection[str]:
        """The names of all tensors of the files."""
        ...

    def plain_dtype(self) -> str:
        """The dtype of what is not quantised, "bfloat16" or "float32"."""
        ...

    def measure(self, packer: Packer) -> Measured:
        """Weights without values: for planning."""
        ...

    def load(self, packer: Packer) -> LoadedWeights:
        """The weights themselves."""
        ...

    def close(self) -> None: ...


class TensorSource(Protocol):
    """Weights that stand in files tensor by tensor, under the names that an architecture gives."""

    def has(self, name: str) -> bool: ...

    def stored(self, part: Part) -> Stored:
        """How a tensor is stored. Raises ModelError if it is missing or cannot be this one."""
        ...

    def rows(self, part: Part) -> Iterator[Array]:
        """Its rows as floats, in blocks that are valid until the next is asked for."""
        ...

    def quantised(self, part: Part) -> Iterator[QuantisedRows]:
        """Its rows as they are stored, where `stored` gives an encoding."""
        ...

    def blocks(self, part: Part) -> Iterator[BlockRows]:
        """Its rows as they are stored, where `stored` names a format of blocks."""
        ...


class Scale:
    """Checks that every tensor is there, and adds up what it would take when packed."""

    def __init__(self, source: TensorSource, packer: Packer) -> None:
        self.bytes = 0
        self.parameters = 0
        self.used: set[str] = set()
        self.formats: Counter[str] = Counter()
        self._source = source
        self._packer = packer
        self._kept: Counter[tuple[str, str]] = Counter()
        self._rounded: Counter[tuple[str, str]] = Counter()

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        stored = [self._source.stored(part) for part in parts]
        for part in stored:
            self.used.update(part.tensors)
        rows, columns = matrix_shape(parts)
        self.parameters += rows * columns
        pieces = pieces_of(self._source, self._packer, parts, role)
        planned = [self._piece(piece, packing) for piece, packing in pieces]
        return planned[0] if len(planned) == 1 else StackedLinear(planned)

    def _piece(self, parts: Sequence[Part], packing: Packing) -> Linear:
        rows, columns = matrix_shape(parts)
        try:
            nbytes = self._packer.layout.nbytes(packing.format, rows, columns, packing.zeros)
        except ModelError as error:
            raise ModelError(f"tensor {parts[0].name!r}: {error}") from None
        if packing.rank:
            nbytes += correction_bytes(rows, columns, packing.rank)
        self.bytes += nbytes
        self.formats[packing.describe()] += 1
        for part in map(self._source.stored, parts):
            if part.quantised and packing.kept:
                self._kept[part.dtype, f"held in {packing.format.name}, to the bit"] += 1
            elif part.quantised and packing.widened:
                self._kept[part.dtype, f"widened exactly to {packing.format.name}"] += 1
            elif part.quantised:
                self._rounded[part.dtype, packing.format.name] += 1
        return UnloadedLinear(packing.format.name, rows, columns, nbytes)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        for name, shape in parts:
            self.used.update(self._source.stored(_whole(name, shape)).tensors)
        self.bytes += 4 * vector_length(parts)
        self.parameters += vector_length(parts)
        return np.empty(0, np.float32)

    def notes(self) -> list[str]:
        return [
            f"{dtype}: {count} tensor{'s are' if count > 1 else ' is'} {how}."
            for (dtype, how), count in self._kept.items()
        ] + [
            f"warning: {count} tensor{'s' * (count > 1)} that the checkpoint quantised to {dtype} "
            f"will be rounded once more, to {name}, which costs quality and may "
            f"take more room than they do now; quantization 'stored' takes them as they are."
            for (dtype, name), count in self._rounded.items()
        ]


class Loader:
    """Reads every tensor once, in blocks of rows, and packs it."""

    def __init__(self, source: TensorSource, packer: Packer) -> None:
        self.packed = PackedWeights(packer.layout)
        self.mapped: list[Array] = []
        self._source = source
        self._packer = packer

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def digest(self) -> str:
        return self.packed.digest()

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        pieces = pieces_of(self._source, self._packer, parts, role)
        loaded = [self._piece(piece, packing) for piece, packing in pieces]
        linear = loaded[0] if len(loaded) == 1 else StackedLinear(loaded)
        self.packed.matrices[key_of(parts)] = linear
        return linear

    def _piece(self, parts: Sequence[Part], packing: Packing) -> Linear:
        fitted = self._packer.fitted.pop(key_of(parts), None)
        if fitted is not None:
            return fitted
        rows, columns = matrix_shape(parts)
        reading, layout = Reading(self._source, parts), self._packer.layout
        try:
            if packing.blocks is not None:
                return packing.blocks.adopt(rows, columns, reading.blocks(), layout)
            if packing.holder is not None and packing.encoding is not None:
                quantised = reading.quantised()
                return packing.holder.adopt(rows, columns, packing.encoding, quantised, layout)
            packed: Linear = packing.format.pack(rows, columns, reading.floats(), layout)
            if packing.correction is None:
                return packed
            weights = np.concatenate([np.array(b, np.float32) for b in reading.floats()])
            return corrected(packed, weights, packing.correction, None)
        except ModelError as error:
            raise reading.named(error) from None

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        values = np.empty(vector_length(parts), np.float32)
        filled = 0
        for name, shape in parts:
            first = filled
            for block in Reading(self._source, [_whole(name, shape)]).floats():
                values[filled : filled + block.size] = block.reshape(-1)
                filled += block.size
            if not np.isfinite(values[first:filled]).all():
                raise ModelError(f"tensor {name!r}: NaN or infinity stands in it.")
        if offset:
            values += np.float32(offset)
        self.packed.vectors[vector_key(parts)] = values
        return values


def _whole(name: str, shape: tuple[int, ...]) -> Part:
    return Part(name, shape, 0, math.prod(shape[:-1]))


class Reading:
    """The blocks of some parts, one after another, and which of them is being read."""

    def __init__(self, source: TensorSource, parts: Sequence[Part]) -> None:
        self._source = source
        self._parts = parts
        self._name = parts[0].name
        self._broken = False

    def floats(self) -> Iterator[Array]:
        for part in self._parts:
            yield from self._watched(part, _turned(part, _ordered(part, self._source.rows(part))))

    def quantised(self) -> Iterator[QuantisedRows]:
        for part in self._parts:
            yield from self._watched(part, _ordered(part, self._source.quantised(part)))

    def blocks(self) -> Iterator[BlockRows]:
        for part in self._parts:
            yield from self._watched(part, _ordered(part, self._source.blocks(part)))

    def _watched(self, part: Part, blocks: Iterator[_T]) -> Iterator[_T]:
        self._name = part.name
        try:
            yield from blocks
        except ModelError:
            self._broken = True  # the reader's own error names the tensor already
            raise

    def named(self, error: ModelError) -> ModelError:
        """The error of whoever consumed the blocks, with the tensor's name."""
        return error if self._broken else ModelError(f"tensor {self._name!r}: {error}")


def _ordered(part: Part, blocks: Iterator[Rows]) -> Iterator[Rows]:
    return blocks if part.pairs is None else in_halves(blocks, part.pairs)


def _turned(part: Part, blocks: Iterator[Array]) -> Iterator[Array]:
    if not part.turned:
        yield from blocks
        return
    rows = [np.array(block, np.float32) for block in blocks]
    yield np.ascontiguousarray(np.concatenate(rows).T)


def _as_floats(part: Part, stored: Stored) -> Stored:
    """What is turned is read as floats, however it is stored."""
    if not part.turned:
        return stored
    return replace(stored, encoding=None, blocks=None, opaque=stored.quantised)


def pieces_of(
    source: TensorSource, packer: Packer, parts: Sequence[Part], role: Role
) -> list[tuple[Sequence[Part], Packing]]:
    """The runs of parts that are packed as one, and how: see `Packer.packings`."""
    columns = matrix_shape(parts)[1]
    stored = [_as_floats(part, source.stored(part)) for part in parts]
    keys = [key_of([part]) for part in parts]
    whole = packer.corrections.get(key_of(parts))
    pieces, first = [], 0
    for run, packing in packer.packings(stored, columns, role, keys):
        own = parts[first : first + len(run)]
        correction = packer.corrections.get(keys[first], whole)
        pieces.append((own, packing.corrected(correction, matrix_shape(own))))
        first += len(run)
    return pieces
