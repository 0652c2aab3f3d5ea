"""What the matrices of a model multiply when it reads a text, layer by layer, and on the way back
from the loss: on the reference backend, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats, Ints
from ockham.core.seams import Inputs, LayerReading, Linear, Role
from ockham.model.calibration import Layers
from ockham.model.checkpoint.sources import LoadedWeights
from ockham.model.packed.layout import key_of
from ockham.model.packed.packing import Packer, plain_format
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, VectorPart


class Readable(Protocol):
    """Where weights are loaded from."""

    def load(self, packer: Packer) -> LoadedWeights: ...


def read_layers(
    source: Readable, description: ModelDescription, windows: Ints
) -> Iterator[LayerReading]:
    """Let the model read windows of token ids (count, length). The weights are loaded now; each
    layer is read when it is asked for."""
    weights = _Observing(source.load(plain_packer()))
    program = compile_program(description, weights, description.max_position_embeddings)
    layers = Layers(program, description, windows)
    return _readings(weights, layers, description.layers)


def _readings(weights: _Observing, layers: Layers, count: int) -> Iterator[LayerReading]:
    for number, (_, start, stop) in enumerate(layers.ranges()):
        layers.run(start, stop)
        inputs: dict[str, Inputs] = {}
        for matrix in weights.matrices:
            found = matrix.take()
            if found is not None:
                inputs |= dict.fromkeys(matrix.names, found)
        yield LayerReading(number if number < count else None, inputs)


def plain_packer() -> Packer:
    """Every matrix in fp32, in rows, as the reference backend reads it."""
    return Packer(plain_format("float32"))


class _Observed:
    """A matrix that sums what it multiplies."""

    def __init__(self, names: Sequence[str], linear: Linear) -> None:
        self.names, self.linear = names, linear
        self.format: str = linear.format
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.arrays: dict[str, Array] = linear.arrays
        self._moments: Floats | None = None
        self._rows = 0

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes

    def matmul(self, x: Floats) -> Floats:
        if self._moments is None:
            self._rows = 0
            self._moments = np.zeros((self.in_features, self.in_features), np.float32)
            self._largest = np.zeros(self.in_features, np.float32)
            self._absolute = np.zeros(self.in_features, np.float32)
        size = np.abs(x)
        self._rows += len(x)
        self._moments += x.T @ x
        np.maximum(self._largest, size.max(axis=0, initial=0.0), out=self._largest)
        self._absolute += size.sum(axis=0)
        return self.linear.matmul(x)

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        return self.linear.rows(ids)

    def take(self) -> Inputs | None:
        """What was summed since the last time; None where nothing was."""
        moments, self._moments = self._moments, None
        if moments is None:
            return None
        return Inputs(self._rows, moments, self._largest, self._absolute)


class _Observing:
    """Every matrix of a model, observed under the names that transforms know it by."""

    def __init__(self, weights: LoadedWeights) -> None:
        self._weights = weights
        self.matrices: list[_Observed] = []

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        observed = _Observed(names_of(parts), self._weights.linear(parts, role))
        self.matrices.append(observed)
        return observed

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return self._weights.vector(parts, offset)


def names_of(parts: Sequence[Part]) -> list[str]:
    """Each part's name, and those of both halves of one that may be a fused gate and up."""
    names = [key_of([part]) for part in parts]
    if len(parts) == 1:
        (part,) = parts
        middle = (part.start + part.stop) // 2
        for start, stop in ((part.start, middle), (middle, part.stop)):
            names.append(key_of([Part(part.name, part.shape, start, stop)]))
    return names
