"""The two things that the compiler runs against: a scale, and a loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ockham.core.errors import ModelError
from ockham.core.seams import Array, Format, Linear
from ockham.kernels.ops import Floats
from ockham.model.compile import Part
from ockham.model.safetensors import Checkpoint


@dataclass(slots=True)
class UnloadedLinear:
    """A matrix that is only planned: its shape and what it would take, but no values."""

    format: str
    out_features: int
    in_features: int
    nbytes: int
    arrays: dict[str, Array] = field(default_factory=dict)

    def matmul(self, x: Floats) -> NoReturn:
        raise ModelError("the weights of this program have not been loaded.")

    def rows(self, ids: npt.NDArray[np.int32]) -> NoReturn:
        raise ModelError("the weights of this program have not been loaded.")


class Scale:
    """Checks that every tensor is there, and adds up what it would take when packed."""

    def __init__(self, checkpoint: Checkpoint, weight_format: Format) -> None:
        self.bytes = 0
        self.parameters = 0
        self.used: set[str] = set()
        self._checkpoint = checkpoint
        self._format = weight_format

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def linear(self, parts: Sequence[Part]) -> Linear:
        for part in parts:
            self._checkpoint.find(part.name, part.shape)
            self.used.add(part.name)
        rows, columns = _matrix_shape(parts)
        nbytes = self._format.packed_bytes(rows, columns)
        self.bytes += nbytes
        self.parameters += rows * columns
        return UnloadedLinear(self._format.name, rows, columns, nbytes)

    def vector(self, parts: Sequence[tuple[str, int]], offset: float = 0.0) -> Floats:
        for name, length in parts:
            self._checkpoint.find(name, (length,))
            self.used.add(name)
            self.bytes += 4 * length
            self.parameters += length
        return np.empty(0, np.float32)


class Loader:
    """Reads every tensor once, in blocks of rows, and packs it."""

    def __init__(self, checkpoint: Checkpoint, weight_format: Format) -> None:
        self._checkpoint = checkpoint
        self._format = weight_format

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def linear(self, parts: Sequence[Part]) -> Linear:
        rows, columns = _matrix_shape(parts)
        reading = _Reading(self._checkpoint, parts)
        try:
            return self._format.pack(rows, columns, iter(reading))
        except ModelError as error:
            raise reading.named(error) from None

    def vector(self, parts: Sequence[tuple[str, int]], offset: float = 0.0) -> Floats:
        values = np.empty(sum(length for _, length in parts), np.float32)
        filled = 0
        for name, length in parts:
            part = Part(name, (length,), 0, 1)
            for block in _Reading(self._checkpoint, [part]):
                values[filled : filled + length] = block[0]
            if not np.isfinite(values[filled : filled + length]).all():
                raise ModelError(f"tensor {name!r}: NaN or infinity stands in it.")
            filled += length
        return values + np.float32(offset) if offset else values


class _Reading:
    """The blocks of some parts, one after another, and which of them is being read."""

    def __init__(self, checkpoint: Checkpoint, parts: Sequence[Part]) -> None:
        self._checkpoint = checkpoint
        self._parts = parts
        self._name = parts[0].name
        self._broken = False

    def __iter__(self) -> Iterator[Array]:
        for part in self._parts:
            self._name = part.name
            tensor = self._checkpoint.find(part.name, part.shape)
            try:
                yield from self._checkpoint.blocks(tensor, part.start, part.stop)
            except ModelError:
                self._broken = True  # the reader's own error names the tensor already
                raise

    def named(self, error: ModelError) -> ModelError:
        """The error of whoever consumed the blocks, with the tensor's name."""
        return error if self._broken else ModelError(f"tensor {self._name!r}: {error}")


def _matrix_shape(parts: Sequence[Part]) -> tuple[int, int]:
    return sum(part.stop - part.start for part in parts), parts[0].shape[-1]
