"""The header of a GGUF file: metadata, and where each tensor stands.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
The `gguf` package's own reader is not used: it maps the file, names no tensor in its errors, and
takes 9 s for a vocabulary of 150,000 tokens with merges.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.kernels.native import core
from ockham.model.checkpoint.gguf.strings import STRINGS, PlainStrings
from ockham.model.checkpoint.gguf.types import FORK_TYPES, TENSOR_TYPES, TensorType
from ockham.model.files.weights_file import WeightsFile

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
CHUNK_BYTES = 1 << 20
MOST_HEADER_BYTES = 256 << 20
"""Of metadata and tensors' entries together: those of the largest vocabularies take 20 MB."""

MOST_VALUES = 4_000_000
"""Of all lists in the metadata together, each of which takes some hundred bytes of memory."""

MOST_TENSORS = 1_000_000
MOST_DIMENSIONS = 4

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
"""Numbers of value types; the others are scalars, as `struct` spells them."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of rows of `shape[-1]` values: bytes [start, stop) of `file`.

    `type` is None, and `stop` is `start`, where `type_number` is unknown.
    """

    file: GgufFile
    name: str
    shape: tuple[int, ...]
    type: TensorType | None
    type_number: int
    start: int
    stop: int

    @property
    def type_name(self) -> str:
        return f"number {self.type_number}" if self.type is None else self.type.name

    @property
    def row_bytes(self) -> int:
        rows = math.prod(self.shape[:-1])
        return (self.stop - self.start) // rows if rows else 0


class GgufFile(WeightsFile):
    """One open file, whose header has been checked whole.

    `metadata` holds numbers, booleans, strings and lists of them; those of strings are STRINGS.
    Raises ModelError if the file is no GGUF file of this kind, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.metadata: dict[str, Any] = {}
            self.tensors: dict[str, GgufTensor] = {}
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        cursor = _Cursor(self)
        if cursor.bytes(4, "the magic number") != b"GGUF":
            raise ModelError(f"{self.path} is no GGUF file.")
        version = cursor.number("I", "the version")
        if version not in VERSIONS:
            raise ModelError(
                f"{self.path} has the GGUF version {version}; supported are "
                f"{' and '.join(map(str, VERSIONS))}, little-endian."
            )
        tensors = cursor.number("Q", "the number of tensors")
        if tensors > MOST_TENSORS:
            raise ModelError(
                f"{self.path} declares {tensors} tensors; at most {MOST_TENSORS} are read."
            )
        for _ in range(cursor.number("Q", "the number of keys")):
            key = cursor.string("a key")
            self.metadata[key] = cursor.value(cursor.number("I", key), key)
        entries = [self._entry(cursor) for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(f"{self.path} asks for an alignment of {shown(alignment)} bytes.")
        data = -(-cursor.offset // alignment) * alignment
        for name, shape, number, offset in entries:
            self.tensors[name] = self._tensor(name, shape, number, data + offset)

    def _entry(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = cursor.string("a tensor's name")
        what = f"the entry of tensor {shown(name)}"
        if name in self.tensors:
            raise ModelError(f"{self.path} holds tensor {shown(name)} twice.")
        count = cursor.number("I", what)
        if not 1 <= count <= MOST_DIMENSIONS:
            raise ModelError(f"tensor {shown(name)} of {self.path} has {count} dimensions.")
        sizes = tuple(cursor.number("Q", what) for _ in range(count))
        return name, sizes[::-1], cursor.number("I", what), cursor.number("Q", what)

    def _tensor(self, name: str, shape: tuple[int, ...], number: int, start: int) -> GgufTensor:
        kind = TENSOR_TYPES.get(number, FORK_TYPES.get(number))
        if kind is None:
            return GgufTensor(self, name, shape, None, number, start, start)
        if shape[-1] % kind.block:
            raise ModelError(
                f"tensor {shown(name)} of {self.path} has rows of {shape[-1]} values, which do not "
                f"divide into the {kind.name} blocks of {kind.block}."
            )
        stop = start + math.prod(shape) // kind.block * kind.block_bytes
        if stop > self.nbytes:
            raise ModelError(
                f"{self.path} ends at byte {self.nbytes}, inside or before tensor {shown(name)}: "
                "the file is truncated; download or copy it again."
            )
        return GgufTensor(self, name, shape, kind, number, start, stop)


class _Cursor:
    """Reads the header from front to back, a chunk of the file at a time."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._size = file.nbytes
        self._held = bytearray()
        self._values = 0
        self.offset = 0

    def bytes(self, count: int, what: str) -> bytes:
        stop = self.offset + count
        if stop > self._size:
            raise ModelError(
                f"{self._file.path} ends at byte {self._size}, inside {what}: the file is "
                "truncated; download or copy it again."
            )
        if stop > MOST_HEADER_BYTES:
            raise ModelError(
                f"the header of {self._file.path} is longer than {MOST_HEADER_BYTES} bytes, at "
                f"{what}: the file is damaged."
            )
        while len(self._held) < stop:
            most = min(self._size, MOST_HEADER_BYTES) - len(self._held)
            chunk = bytearray(min(max(CHUNK_BYTES, count), most))
            self._file.read_into(memoryview(chunk), len(self._held), what)
            self._held += chunk
        taken = bytes(self._held[self.offset : stop])
        self.offset = stop
        return taken

    def number(self, kind: str, what: str) -> int:
        values = struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind), what))
        number: int = values[0]
        return number

    def string(self, what: str) -> str:
        return self.bytes(self.number("Q", what), what).decode(errors="replace")

    def strings(self, count: int, what: str) -> core.StringList | PlainStrings:
        """So many strings: all that are held whole at once, then more of the file is read."""
        found = STRINGS()
        while True:
            self.offset = found.read(self._held, self.offset, count - len(found))
            if len(found) == count:
                return found
            start = self.offset
            self.string(what)
            self.offset = start

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], key)
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            raise ModelError(
                f"{self._file.path} has the unknown type {kind} at its key {shown(key)}."
            )
        item, count = self.number("I", key), self.number("Q", key)
        if item == _ARRAY:
            raise ModelError(
                f"{self._file.path} holds lists of lists at its key {shown(key)}, which no "
                "supported model has."
            )
        self._values += count
        if self._values > MOST_VALUES:
            raise ModelError(
                f"the lists in the metadata of {self._file.path} hold more than {MOST_VALUES} "
                f"values, at the key {shown(key)}: the file is damaged."
            )
        if item in _SCALARS:
            spelled = f"<{count}{_SCALARS[item]}"
            return list(struct.unpack(spelled, self.bytes(struct.calcsize(spelled), key)))
        if item == _STRING:
            return self.strings(count, key)
        return [self.value(item, key) for _ in range(count)]
