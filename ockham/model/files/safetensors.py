"""Reading tensors from safetensors files, a block of rows at a time.

Format: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.files.untrusted import MOST_JSON_BYTES, parse_json, read_object
from ockham.model.files.weights_file import WeightsFile

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
"""The dtypes of weights that can be read; a tensor of another is refused when it is asked for."""

INTEGERS: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
"""The dtypes of codes, zero points and indices, which only readers of quantised tensors take."""

SMALL_FLOATS: dict[str, np.dtype[Any]] = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""The dtypes of codes and scales that are floats of 8 bits: as for INTEGERS."""

_ALL_DTYPES = {**DTYPES, **INTEGERS, **SMALL_FLOATS}

_NAMES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
}
_ITEM_BITS = {name: bits for bits, names in _NAMES_BY_BITS.items() for name in names.split()}
MAX_HEADER_BYTES = MOST_JSON_BYTES
MOST_DIMENSIONS = 16
"""Of one tensor: the model has none of more than three."""

BLOCK_BYTES = 1 << 20
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor stands: bytes [start, stop) of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SafetensorsFile
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class SafetensorsFile(WeightsFile):
    """One open file, whose header has been checked whole. `metadata` is what else stands there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> dict[str, Tensor]:
        size = self.nbytes
        if size < 8:
            raise ModelError(f"{self.path} has {size} bytes, which is no safetensors file.")
        prefix = bytearray(8)
        self.read_into(memoryview(prefix), 0, "the header's length")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or 8 + length > size:
            raise ModelError(
                f"{self.path} declares a header of {length} bytes, but the file has {size}: it is "
                "truncated or no safetensors file; download or copy it again."
            )
        raw = bytearray(length)
        self.read_into(memoryview(raw), 8, "the header")
        header = parse_json(raw, f"the header of {self.path}")
        if not isinstance(header, dict):
            raise ModelError(f"the header of {self.path} is not a JSON object.")
        self.metadata = header.pop("__metadata__", None) or {}
        if not isinstance(self.metadata, dict):
            raise ModelError(f"__metadata__ in the header of {self.path} is not an object.")
        data_start, data_bytes = 8 + length, size - 8 - length
        tensors = {
            name: self._tensor(name, entry, data_start, data_bytes)
            for name, entry in header.items()
        }
        self._check_overlaps(tensors)
        return tensors

    def _tensor(self, name: str, entry: Any, data_start: int, data_bytes: int) -> Tensor:
        def refuse(what: str) -> ModelError:
            return ModelError(f"tensor {name!r} of {self.path}: {what}.")

        if not isinstance(entry, dict):
            raise refuse("its header entry is not an object")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _ITEM_BITS:
            raise refuse(f"unknown dtype {shown(dtype)}")
        if not _is_sizes(shape):
            raise refuse(f"its shape is not a list of sizes, but {shown(shape)}")
        if len(shape) > MOST_DIMENSIONS:
            raise refuse(f"it has {len(shape)} dimensions; at most {MOST_DIMENSIONS} are read")
        if not _is_sizes(offsets) or len(offsets) != 2:
            raise refuse(f"its data_offsets are not two byte offsets, but {shown(offsets)}")
        start, stop = offsets
        if not start <= stop <= data_bytes:
            raise refuse(
                f"its bytes [{start}, {stop}) do not lie in the file's {data_bytes} bytes of data; "
                "the file is truncated or corrupt"
            )
        bits = _ITEM_BITS[dtype]
        for size in shape:
            bits *= size
        if bits != 8 * (stop - start):
            raise refuse(
                f"shape {shape} of {dtype} needs {bits // 8} bytes, its offsets hold {stop - start}"
            )
        return Tensor(name, dtype, tuple(shape), self, data_start + start, data_start + stop)

    def _check_overlaps(self, tensors: dict[str, Tensor]) -> None:
        previous: Tensor | None = None
        stored = [tensor for tensor in tensors.values() if tensor.nbytes]
        for tensor in sorted(stored, key=lambda t: t.start):
            if previous is not None and tensor.start < previous.stop:
                raise ModelError(
                    f"tensors {previous.name!r} and {tensor.name!r} of {self.path} overlap; the "
                    "file is corrupt."
                )
            previous = tensor


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


class Checkpoint:
    """All tensors of a directory, in one file or in shards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, Tensor] = {}
        self.files: list[SafetensorsFile] = []
        self._buffer = bytearray()
        single, index = directory / SINGLE_FILE, directory / INDEX_FILE
        if single.exists():
            self.tensors = self._open(single).tensors
        elif index.exists():
            self._open_shards(index)
        else:
            raise ModelError(
                f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; Ockham reads weights "
                f"in the safetensors format only.{_other_weights(directory)}"
            )

    def add_folder(self, name: str) -> None:
        """The tensors of a folder's single file too, as `NAME/TENSOR`."""
        path = self.directory / name / SINGLE_FILE
        if not path.exists():
            raise ModelError(
                f"{path.parent} has no {SINGLE_FILE}; Ockham reads weights in the safetensors "
                f"format only.{_other_weights(path.parent)}"
            )
        held = self._open(path).tensors
        self.tensors |= {f"{name}/{tensor}": held[tensor] for tensor in held}

    def close(self) -> None:
        """Close all files and let the buffer go."""
        self._buffer = bytearray()
        for file in self.files:
            file.close()

    def find(
        self, name: str, shape: tuple[int, ...], dtypes: Collection[str] = tuple(DTYPES)
    ) -> Tensor:
        """A tensor by name; raises ModelError if it is missing, of another shape or dtype. A vector
        may be stored as a matrix of one row."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelError(f"the checkpoint {self.directory} has no tensor {name!r}.")
        if tensor.shape != shape and (len(shape) > 1 or tensor.shape != (1, *shape)):
            raise ModelError(
                f"tensor {name!r} of {tensor.file.path} has the shape {list(tensor.shape)}, but "
                f"config.json implies {list(shape)}."
            )
        if tensor.dtype not in dtypes:
            raise ModelError(
                f"tensor {name!r} of {tensor.file.path} has the dtype {tensor.dtype}; supported "
                f"are {', '.join(dtypes)}."
            )
        return tensor

    def read(self, tensor: Tensor) -> Array:
        """A whole tensor, in memory of its own."""
        buffer = bytearray(tensor.nbytes)
        tensor.file.read_into(memoryview(buffer), tensor.start, f"tensor {tensor.name!r}")
        whole: Array = np.frombuffer(buffer, _ALL_DTYPES[tensor.dtype]).reshape(tensor.shape)
        return whole

    def read_entry(self, tensor: Tensor, index: int) -> Array:
        """Entry `index` of a tensor's first axis, in memory of its own."""
        buffer = bytearray(tensor.nbytes // tensor.shape[0])
        start = tensor.start + index * len(buffer)
        tensor.file.read_into(memoryview(buffer), start, f"tensor {tensor.name!r}")
        entry: Array = np.frombuffer(buffer, _ALL_DTYPES[tensor.dtype]).reshape(tensor.shape[1:])
        return entry

    def blocks(self, tensor: Tensor, start: int, stop: int) -> Iterator[Array]:
        """Rows [start, stop) of a tensor seen as a matrix (all axes but the last made one).

        A block is valid until the next one of any tensor is asked for: all share one buffer, and
        two tensors cannot be read in turns.
        """
        width = tensor.shape[-1]
        row_bytes = width * _ALL_DTYPES[tensor.dtype].itemsize
        rows = max(1, BLOCK_BYTES // max(1, row_bytes))
        if len(self._buffer) < rows * row_bytes:
            self._buffer = bytearray(rows * row_bytes)
        for first in range(start, stop, rows):
            count = min(rows, stop - first)
            view = memoryview(self._buffer)[: count * row_bytes]
            tensor.file.read_into(view, tensor.start + first * row_bytes, f"tensor {tensor.name!r}")
            yield np.frombuffer(view, _ALL_DTYPES[tensor.dtype]).reshape(count, width)

    def differ(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors have different values, of different dtypes perhaps. Raises ModelError
        for dtypes that are not those of weights."""
        if one.shape != other.shape:
            return True
        count = math.prod(one.shape)
        for first in range(0, count, BLOCK_BYTES):
            blocks = []
            for tensor in (one, other):
                if tensor.dtype not in DTYPES:
                    raise ModelError(
                        f"tensor {tensor.name!r} of {tensor.file.path} has the dtype "
                        f"{tensor.dtype}; supported are {', '.join(DTYPES)}."
                    )
                dtype = DTYPES[tensor.dtype]
                raw = bytearray(min(BLOCK_BYTES, count - first) * dtype.itemsize)
                start = tensor.start + first * dtype.itemsize
                tensor.file.read_into(memoryview(raw), start, f"tensor {tensor.name!r}")
                blocks.append(np.frombuffer(raw, dtype).astype(np.float64))
            if not np.array_equal(blocks[0], blocks[1]):
                return True
        return False

    def _open(self, path: Path) -> SafetensorsFile:
        file = SafetensorsFile(path)
        self.files.append(file)
        return file

    def _open_shards(self, index: Path) -> None:
        weight_map = self._weight_map(index)
        for shard in sorted(set(weight_map.values())):
            path = index.parent / shard
            if not path.exists():
                raise ModelError(
                    f"{index} names the shard {shard}, which is missing; download or copy the "
                    "checkpoint again."
                )
            held = self._open(path).tensors
            for name in (n for n, s in weight_map.items() if s == shard):
                if name not in held:
                    raise ModelError(f"{index} says that {shard} holds {name!r}, but it does not.")
                self.tensors[name] = held[name]

    @staticmethod
    def _weight_map(index: Path) -> dict[str, str]:
        try:
            weight_map = read_object(index).get("weight_map")
        except OSError as error:
            raise ModelError(f"{index} cannot be read: {error.strerror}.") from None
        if not isinstance(weight_map, dict) or not all(
            isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
        ):
            raise ModelError(f"the weight_map of {index} does not name files of its directory.")
        return weight_map


def _other_weights(directory: Path) -> str:
    """What to do about weights of another format that stand in a directory."""
    others = [
        path.name
        for pattern in ("*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack")
        for path in sorted(directory.glob(pattern))
    ]
    if not others:
        return ""
    return f" It holds {others[0]}: convert it (transformers: save_pretrained) and try again."


def write_floats(path: Path, tensors: Mapping[str, Floats]) -> None:
    """Write fp32 tensors to a file, in the order of the mapping."""
    entries, end = {}, 0
    for name, values in tensors.items():
        entries[name] = {
            "dtype": "F32",
            "shape": values.shape,
            "data_offsets": [end, end + values.nbytes],
        }
        end += values.nbytes
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, np.float32).data)
