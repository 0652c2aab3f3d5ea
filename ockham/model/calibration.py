"""Calibration: matrices fitted to the inputs that they have when the model reads a text.

The unquantised model runs over the text on the reference backend, layer by layer: all windows of
the text go through one layer, its products' inputs are summed to second moments, its matrices are
packed (`FittedFormat.fit`), and the moments are let go before the next layer begins. Every layer
sees the inputs that the unquantised layers before it give. A matrix that the format leaves to
another, or that no row reached (an expert that nobody chose), is packed as without calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array, Floats, Ints
from ockham.core.errors import ModelError
from ockham.core.seams import FittedFormat, Layout, Linear, Role
from ockham.kernels.ops import Program
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.model.packed.layout import key_of
from ockham.model.packed.packing import Packing
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, VectorPart, Weights, matrix_shape
from ockham.model.windows import cut, layouts_for, read_text, window_step
from ockham.weights.correcting import corrected

ROWS_AT_ONCE = 1024
WINDOW_TOKENS = 512
"""Tokens that see each other; the model's own limit where that is less."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Windows of token ids (count, length), and the digest of the file that they come from."""

    windows: Ints
    digest: str

    def record(self) -> dict[str, Any]:
        """What a converted directory says of it."""
        count, length = self.windows.shape
        return {"digest": self.digest, "windows": count, "window_tokens": length}


def read_calibration(
    path: Path, encode: Callable[[str], Sequence[int]], most_tokens: int, longest: int
) -> CalibrationText:
    """The first tokens of a text file, in windows of `longest`. `encode` gives the token ids of a
    text, without special tokens.

    Raises ConfigError if the text cannot be read or is too short, and what `encode` raises.
    """
    text, digest = read_text(path)
    tokens = encode(text)
    length = min(WINDOW_TOKENS, longest)
    return CalibrationText(cut(tokens, length, max(1, most_tokens // length)), digest)


class Observed:
    """A matrix that sums the second moments of what it multiplies."""

    def __init__(self, parts: Sequence[Part], linear: Linear, role: Role) -> None:
        self.parts, self.linear, self.role = parts, linear, role
        self.format: str = linear.format
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.arrays: dict[str, Array] = linear.arrays
        self.moments: Floats | None = None

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes

    def matmul(self, x: Floats) -> Floats:
        if self.moments is None:
            self.moments = np.zeros((self.in_features, self.in_features), np.float32)
        self.moments += x.T @ x
        return self.linear.matmul(x)

    def rows(self, ids: npt.NDArray[np.int32]) -> Floats:
        return self.linear.rows(ids)


class ObservedWeights:
    """Every matrix of a model, observed."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.matrices: list[Observed] = []

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        observed = Observed(parts, self._weights.linear(parts, role), role)
        self.matrices.append(observed)
        return observed

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return self._weights.vector(parts, offset)


Pieces = Callable[[Sequence[Part], Role], Sequence[tuple[Sequence[Part], Packing]]]
"""The runs of a matrix's parts that are packed as one, and how."""


def calibrate(
    description: ModelDescription,
    weights: Weights,
    windows: Ints,
    pieces: Pieces,
    layout: Layout,
    progress: Callable[[str], None],
) -> dict[str, Linear]:
    """Matrices whose formats are fitted, or that are corrected, by the key of their parts, fitted
    to the text and laid out. `weights` are the unquantised ones."""
    observed = ObservedWeights(weights)
    program = compile_program(description, observed, description.max_position_embeddings)
    layers = Layers(program, description, windows)
    packed: dict[str, Linear] = {}
    for name, start, stop in layers.ranges():
        layers.run(start, stop)
        for matrix in observed.matrices:
            if matrix.moments is not None:
                packed |= _fit(matrix, matrix.moments, pieces, layout)
            matrix.moments = None
        progress(f"calibrated {name}")
    return packed


def _fit(matrix: Observed, moments: Floats, pieces: Pieces, layout: Layout) -> dict[str, Linear]:
    """The pieces of a matrix that have fitted formats or are corrected, by key."""
    found, first = {}, 0
    for parts, packing in pieces(matrix.parts, matrix.role):
        stop = first + matrix_shape(parts)[0]
        if isinstance(packing.format, FittedFormat) or packing.correction is not None:
            rows = matrix.rows(np.arange(first, stop, dtype=np.int32))
            try:
                found[key_of(parts)] = _fitted(rows, moments, packing, layout)
            except ModelError as error:
                raise ModelError(f"tensor {key_of(parts)!r}: {error}") from None
        first = stop
    return found


def _fitted(rows: Floats, moments: Floats, packing: Packing, layout: Layout) -> Linear:
    """Weights (N, K) as they are packed for inputs of such moments."""
    if isinstance(packing.format, FittedFormat):
        packed = packing.format.fit(rows, moments, layout)
    else:
        packed = packing.format.pack(rows.shape[0], rows.shape[1], [rows], layout)
    if packing.correction is None:
        return packed
    return corrected(packed, rows, packing.correction, moments)


class Layers:
    """Windows on their way through a program, range by range."""

    def __init__(self, program: Program, description: ModelDescription, windows: Ints) -> None:
        self._program = program
        at_once = max(1, ROWS_AT_ONCE // windows.shape[1])
        backend = ReferenceBackend()
        layouts = layouts_for(description, at_once, windows.shape[1], "float32")
        self._executor = backend.bind(program, backend.allocate(layouts))
        self._steps = [
            window_step(windows[start : start + at_once], len(layouts))
            for start in range(0, len(windows), at_once)
        ]
        self._x: list[Floats] = []
        for step in self._steps:
            run = self._executor.begin(step)
            self._executor.run(run, 0, 1)
            self._x.append(run.x)

    def ranges(self) -> list[tuple[str, int, int]]:
        """(name, start, stop) of each layer's operations, and of the head's."""
        return layer_ranges(self._program)

    def run(self, start: int, stop: int) -> None:
        for number, step in enumerate(self._steps):
            run = self._executor.begin(step)
            run.x = self._x[number]
            self._executor.run(run, start, stop)
            self._x[number] = run.x


def layer_ranges(program: Program) -> list[tuple[str, int, int]]:
    """(name, start, stop) of each layer's operations, and of the head's."""
    marks = program.breakpoints
    layers = sum(name.endswith(".before") for name in marks)
    starts = [marks[f"layer.{i}.before"] for i in range(layers)] + [marks["head"]]
    names = [f"layer {i + 1} of {layers}" for i in range(layers)] + ["the head"]
    stops = [*starts[1:], len(program.ops)]
    return list(zip(names, starts, stops, strict=True))
