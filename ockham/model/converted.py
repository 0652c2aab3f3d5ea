"""Directories that `ockham convert` writes: packed matrices that need no packing when loaded.

`model.safetensors` holds, for each matrix that the compiler asks for, its arrays as the format's
docstring lays them out, in panels: `KEY/weight`, `KEY/scale`, `KEY/zero`; and each vector as
`KEY/vector`, float32, as it is used (with the offset of its norm). KEY names the tensors of the
original checkpoint that were packed together, joined by +, with [start:stop] where only some of
their rows were taken. `__metadata__` of the file has under "matrices" what else must be known of
each (`StoredMatrix`). config.json is the original's, but for its `quantization_config`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Array, Linear
from ockham.kernels.memory import as_bytes
from ockham.kernels.ops import Floats
from ockham.model.compile import Part
from ockham.model.digest import ContentDigest
from ockham.model.packing import Packer, Packing, make_format
from ockham.model.safetensors import SINGLE_FILE, SafetensorsFile, Tensor
from ockham.model.sources import UnloadedLinear, matrix_shape
from ockham.weights.stored import StoredMatrix, read_record

METHOD = "ockham"
"""quant_method of such a directory's config.json."""

VERSION = 1
"""Raised whenever the layout of the file or of any format changes."""

READ_BYTES = 4 << 20
"""Bytes that are read at a time, so that they are still in the cache when they are digested."""

DTYPES = {"uint8": "U8", "float16": "F16", "float32": "F32", "bfloat16": "BF16"}
"""NumPy's name of an array's dtype -> that of safetensors."""


def key_of(parts: Sequence[Part]) -> str:
    """The KEY of a matrix."""
    spelled = []
    for part in parts:
        whole = part.start == 0 and part.stop == math.prod(part.shape[:-1])
        spelled.append(part.name if whole else f"{part.name}[{part.start}:{part.stop}]")
    return "+".join(spelled)


def vector_key(parts: Sequence[tuple[str, int]]) -> str:
    """The KEY of a vector."""
    return "+".join(name for name, _ in parts)


class ConvertedSource:
    """A directory that `ockham convert` wrote."""

    harmless: tuple[str, ...] = ()

    def __init__(self, directory: Path, quantised: Mapping[str, Any]) -> None:
        """Raises ModelError if another version wrote it, or a file is missing or damaged."""
        self.directory = directory
        version = quantised.get("version")
        if version != VERSION:
            raise ModelError(
                f"{directory} was written by version {version!r} of the format; this Ockham reads "
                f"version {VERSION}. Convert the original again: ockham convert."
            )
        self.quantised_as: str | None = quantised.get("quantization")
        self._plain = quantised.get("plain")
        self.digest = ContentDigest()
        self.file = SafetensorsFile(directory / SINGLE_FILE)
        try:
            self.matrices = self._read_matrices()
        except BaseException:
            self.file.close()
            raise
        keys = {name.rpartition("/")[0] for name in self.file.tensors}
        self._names = {part.partition("[")[0] for key in keys for part in key.split("+")}

    def names(self) -> Collection[str]:
        return self.file.tensors

    def plain_dtype(self) -> str:
        return "BF16" if self._plain == "bf16" else "F32"

    def measure(self, packer: Packer) -> ConvertedScale:
        self._refuse_another(packer)
        return ConvertedScale(self)

    def load(self, packer: Packer) -> ConvertedLoader:
        self._refuse_another(packer)
        return ConvertedLoader(self)

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
                f"tensor {key!r} of {self.file.path} has the shape "
                f"{[stored.out_features, stored.in_features]}, but config.json implies "
                f"{list(shape)}."
            )
        blank = stored.blank()
        tensors = {
            name: self.tensor(f"{key}/{name}", array) for name, array in blank.arrays.items()
        }
        return stored, blank, tensors

    def tensor(self, name: str, array: Array) -> Tensor:
        """A tensor of the file that has an array's dtype and shape."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise self._missing(name)
        if (tensor.dtype, tensor.shape) != (DTYPES[array.dtype.name], array.shape):
            raise ModelError(
                f"tensor {name!r} of {self.file.path} is {tensor.dtype} {list(tensor.shape)}, but "
                f"should be {DTYPES[array.dtype.name]} {list(array.shape)}; convert the original "
                "again."
            )
        return tensor

    def fill(self, array: Array, tensor: Tensor) -> None:
        """Read a tensor straight into an array."""
        view = as_bytes(array).data
        self.digest.update_exactly(tensor.name.encode())
        for start in range(0, len(view), READ_BYTES):
            chunk = view[start : start + READ_BYTES]
            self.file.read_into(chunk, tensor.start + start, f"tensor {tensor.name!r}")
            self.digest.update(chunk)

    def _missing(self, name: str) -> ModelError:
        return ModelError(
            f"the converted model {self.directory} has no tensor {name!r}; convert the original "
            "again."
        )

    def _refuse_another(self, packer: Packer) -> None:
        if packer.asked is not None:
            raise ConfigError(
                f"{self.directory} was converted to {self.quantised_as or 'what it held'}; it "
                f"cannot be loaded as {packer.asked.name}. Convert the original to that."
            )

    def _read_matrices(self) -> dict[str, StoredMatrix]:
        try:
            records = json.loads(self.file.metadata["matrices"])
            items = records.items()
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ModelError(
                f"{self.file.path} does not say what its matrices are; convert the original again."
            ) from None
        matrices = {}
        for key, record in items:
            try:
                matrices[key] = read_record(record)
            except ValueError as error:
                raise ModelError(
                    f"tensor {key!r} of {self.file.path} cannot be read: {error}."
                ) from None
        return matrices


class ConvertedScale:
    """Checks that every array is there, and adds up what they take."""

    def __init__(self, source: ConvertedSource) -> None:
        self.bytes = 0
        self.parameters = 0
        self.used: set[str] = set()
        self.formats: Counter[str] = Counter()
        self._source = source

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def linear(self, parts: Sequence[Part]) -> Linear:
        stored, blank, tensors = self._source.matrix(parts)
        self.used.update(tensor.name for tensor in tensors.values())
        self.bytes += blank.nbytes
        self.parameters += stored.out_features * stored.in_features
        for piece in stored.parts or (stored,):
            self.formats[Packing(make_format(piece.format_name)).describe()] += 1
        return UnloadedLinear(stored.format, *matrix_shape(parts), blank.nbytes)

    def vector(self, parts: Sequence[tuple[str, int]], offset: float = 0.0) -> Floats:
        values = np.empty(sum(length for _, length in parts), np.float32)
        self.used.add(self._source.tensor(f"{vector_key(parts)}/vector", values).name)
        self.bytes += values.nbytes
        self.parameters += len(values)
        return np.empty(0, np.float32)

    def notes(self) -> list[str]:
        return []


class ConvertedLoader:
    """Reads every array once, into the memory where it stays."""

    def __init__(self, source: ConvertedSource) -> None:
        self._source = source

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def linear(self, parts: Sequence[Part]) -> Linear:
        _, blank, tensors = self._source.matrix(parts)
        for name, array in blank.arrays.items():
            self._source.fill(array, tensors[name])
        return blank

    def vector(self, parts: Sequence[tuple[str, int]], offset: float = 0.0) -> Floats:
        values = np.empty(sum(length for _, length in parts), np.float32)
        self._source.fill(values, self._source.tensor(f"{vector_key(parts)}/vector", values))
        return values
