"""Weights in GGUF files.

What is held as it is stored: F32, BF16, Q4_0 as codes of 4 bits in groups of 32, and the types of
`gguf.blocks.READERS` in the formats that hold them to the bit. F16 is widened to float32. A
mixture's experts stand in one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, Encoding, QuantisedRows
from ockham.core.registry import make
from ockham.core.seams import Array
from ockham.model.checkpoint.generation_config import gguf_generation_config
from ockham.model.checkpoint.gguf.blocks import READERS, TERNARY, read_blocks, read_i2_s
from ockham.model.checkpoint.gguf.config import (
    config_of,
    describe_gguf,
    find_gguf_architecture,
    gguf_place,
)
from ockham.model.checkpoint.gguf.file import GgufFile, GgufTensor
from ockham.model.checkpoint.gguf.parts import GgufParts
from ockham.model.checkpoint.gguf.types import I2_S
from ockham.model.checkpoint.sources import Loader, Scale
from ockham.model.packed.packing import Packer, Stored
from ockham.model.program.weights import Part

PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
TYPES = (*PLAIN, "Q4_0", *READERS, I2_S)
"""The types that can be read; a tensor of another is refused when it is asked for."""

BLOCK_VALUES = 1 << 20
"""Values of the rows that are read at a time, unless a head has more."""

ROWS = 16
"""Blocks have a multiple of so many rows where they can, which are packed without being copied."""

_Q4_0 = Encoding(bits=4, group=32, half_scales=True, zeros=False)
_QKV = re.compile(r"(blk\.\d+\.attn_)([qkv])\.(weight|bias)")
_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


class GgufSource:
    """A GGUF file, or the parts of one, seen as the checkpoint that it was made from."""

    quantised_as: str | None = None

    def __init__(self, path: Path) -> None:
        """`path` may be any part. Raises ModelError for files that are damaged, incomplete or of an
        architecture not supported."""
        self.harmless: tuple[str, ...] = tuple(f"{name}.weight" for name in _FACTORS)
        self._parts = GgufParts(path)
        try:
            name, self._architecture = find_gguf_architecture(self._parts.metadata)
            shapes = {name: tensor.shape for name, tensor in self._parts.tensors.items()}
            self.config = config_of(self._parts.metadata, shapes, self._factors())
            self.generation_config = gguf_generation_config(self._parts.metadata)
            self.description = describe_gguf(self.config, name, self._architecture)
            unread = [f"model.{each}weight" for each in self.description.unread]
            places = [gguf_place(each, self._architecture) for each in unread]
            self.harmless += tuple(each.name for each in places if each is not None)
        except ModelError as error:
            self._parts.close()
            raise ModelError(f"{self._parts.path} cannot be loaded: {error}") from None
        except BaseException:
            self._parts.close()
            raise

    @property
    def metadata(self) -> dict[str, Any]:
        """Those of the first part, tokenizer included."""
        return self._parts.metadata

    @property
    def files(self) -> list[GgufFile]:
        return self._parts.files

    def names(self) -> Collection[str]:
        return self._parts.tensors

    def plain_dtype(self) -> str:
        """bfloat16 if there is any such matrix: those of other dtypes are widened one by one."""
        types = {t.type_name for t in self._parts.tensors.values() if len(t.shape) > 1}
        return "bfloat16" if "BF16" in types else "float32"

    def measure(self, packer: Packer) -> Scale:
        return Scale(self, packer)

    def load(self, packer: Packer) -> Loader:
        return Loader(self, packer)

    def close(self) -> None:
        self._parts.close()

    def has(self, name: str) -> bool:
        return self._place(name)[0] is not None or self._fused(name) is not None

    def stored(self, part: Part) -> Stored:
        tensor, _ = self._find(part)
        if tensor.type_name == "Q4_0":
            return Stored("Q4_0", (tensor.name,), _Q4_0)
        kind = tensor.type_name
        if kind == I2_S:
            return Stored(kind, (tensor.name,), blocks=TERNARY)
        blocks = READERS[kind].name if kind in READERS and len(part.shape) > 1 else None
        return Stored(kind, (tensor.name,), blocks=blocks)

    def rows(self, part: Part) -> Iterator[Array]:
        tensor, start = self._find(part)
        if tensor.type_name == I2_S:
            held = make("format", TERNARY)
            for rows in self._ternary(part, tensor, start):
                values = {"codes": rows.codes, "scale": rows.scales}
                yield held.decode(values, part.shape[-1])
            return
        for raw in self._blocks(part, tensor, start):
            if tensor.type_name in PLAIN:
                yield raw.view(PLAIN[tensor.type_name])
            else:
                yield _widened(raw, tensor)

    def quantised(self, part: Part) -> Iterator[QuantisedRows]:
        """A block of Q4_0 is an fp16 scale and 16 bytes: inputs 0 to 15 low, 16 to 31 high.

        Where a whole block is too small for fp16 its scale is zero, whatever its codes are; they
        are made to say zero as well.
        """
        tensor, start = self._find(part)
        for raw in self._blocks(part, tensor, start):
            blocks = raw.reshape(len(raw), -1, 18)
            scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
            packed = blocks[..., 2:]
            codes = np.concatenate([packed & 15, packed >> 4], axis=-1)
            codes[scales == 0] = 8
            zeros = np.full(scales.shape, 8, np.uint8)
            yield QuantisedRows(codes.reshape(len(raw), -1), scales, zeros)

    def blocks(self, part: Part) -> Iterator[BlockRows]:
        tensor, start = self._find(part)
        if tensor.type_name == I2_S:
            yield from self._ternary(part, tensor, start)
            return
        for raw in self._blocks(part, tensor, start):
            yield read_blocks(tensor.type_name, raw)

    def _ternary(self, part: Part, tensor: GgufTensor, start: int) -> Iterator[BlockRows]:
        """Rows of I2_S, whose one scale stands behind the matrix."""
        scale = np.empty((1, 1), np.float32)
        tensor.file.read_into(scale.data.cast("B"), tensor.stop, f"the scale of {tensor.name!r}")
        for raw in self._blocks(part, tensor, start):
            yield BlockRows(read_i2_s(raw), np.repeat(scale, len(raw), axis=0))

    def _place(self, name: str) -> tuple[GgufTensor | None, int | None]:
        """The tensor that holds what transformers calls `name`, if it is there, and which of the
        experts that it stacks this is."""
        place = gguf_place(name, self._architecture)
        if place is None:
            return None, None
        stacked = self._parts.tensors.get(place.name)
        if stacked is not None or place.alone is None:
            return stacked, place.expert
        return self._parts.tensors.get(place.alone), None

    def _find(self, part: Part) -> tuple[GgufTensor, int]:
        """The tensor that holds a part, and the row at which the part's tensor begins in it."""
        tensor, expert = self._place(part.name)
        fused = self._fused(part.name) if tensor is None else None
        if fused is not None:
            tensor, first, rows = fused
            return self._checked(tensor, (rows, *part.shape[1:])), first
        if tensor is None:
            place = gguf_place(part.name, self._architecture)
            missing = part.name if place is None else place.name
            raise ModelError(f"{self._parts.path} has no tensor {missing!r}.")
        if (
            expert is None
            and len(part.shape) == 1
            and tensor.type_name == "F32"
            and math.prod(tensor.shape) == part.shape[0]
        ):  # vectors of state spaces have an axis more
            return replace(tensor, shape=part.shape), 0
        experts = self.description.experts
        count = 0 if experts is None else experts.count
        shape = part.shape if expert is None else (count, *part.shape)
        return self._checked(tensor, shape), (expert or 0) * math.prod(part.shape[:-1])

    def _fused(self, name: str) -> tuple[GgufTensor, int, int] | None:
        """The tensor that holds queries, keys and values one after another (of the converter's
        `--fuse-qkv`), if it is there and `name` is one of them; where that begins, and all rows."""
        place, d = gguf_place(name, self._architecture), self.description
        found = _QKV.fullmatch("" if place is None else place.name)
        tensor = self._parts.tensors.get(f"{found[1]}qkv.{found[3]}") if found else None
        if tensor is None or found is None:
            return None
        queries = d.heads * (2 if d.architecture.output_gates else 1)
        kv_heads, head_dim = d.heads_of(int(found[1].split(".")[1]))
        rows = [heads * head_dim for heads in (queries, kv_heads, kv_heads)]
        return tensor, sum(rows[: "qkv".index(found[2])]), sum(rows)

    def _checked(self, tensor: GgufTensor, shape: tuple[int, ...]) -> GgufTensor:
        """A tensor. Raises ModelError if it has not this shape, or cannot be read."""
        # llama.cpp's converter writes a matrix of one row as a vector, and leaves a convolution's
        # axis of one channel out.
        if tensor.shape not in (shape, tuple([n for n in shape if n != 1])):
            raise ModelError(
                f"tensor {tensor.name!r} of {tensor.file.path} has the shape {list(tensor.shape)}, "
                f"but its metadata implies {list(shape)}."
            )
        if tensor.type_name not in TYPES:
            raise ModelError(
                f"tensor {tensor.name!r} of {tensor.file.path} has the type {tensor.type_name}; "
                f"supported are {', '.join(TYPES)}."
            )
        # llama.cpp multiplies a product by such a number, which some converters write of NVFP4.
        scale = f"{tensor.name.removesuffix('.weight')}.scale"
        if scale in self._parts.tensors and not self._meant(scale):
            raise ModelError(
                f"{tensor.file.path} has the tensor {scale!r}, a scale of a whole matrix beside "
                "its blocks, which is not supported; take the file in another type."
            )
        return tensor

    def _meant(self, scale: str) -> bool:
        """Whether the architecture itself has a tensor of such a name."""
        return scale.split(".", 2)[-1] in self._architecture.layer.values()

    def _blocks(
        self, part: Part, tensor: GgufTensor, start: int
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of rows [part.start, part.stop), counted from row `start` of the tensor, in the
        order that transformers has."""
        head = self._reordered_head(part)
        if len(part.shape) == 1:
            line, first = (start, 0) if len(tensor.shape) > 1 else (0, start)
            row = next(self._read(tensor, line, line + 1, 1))
            values = row.reshape(tensor.shape[-1], -1)[first : first + part.shape[0]]
            if head is not None:
                values = values[_transformers_order(len(values), head)]
            yield values.reshape(1, -1)
            return
        unit = head or 1
        rows = BLOCK_VALUES // tensor.shape[-1]
        rows = rows // ROWS * ROWS if head is None and rows >= ROWS else max(1, rows // unit) * unit
        first = part.start // unit * unit
        stop = -(-part.stop // unit) * unit
        for block in self._read(tensor, start + first, start + stop, rows):
            ordered = block if head is None else block[_transformers_order(len(block), head)]
            cut = slice(max(0, part.start - first), part.stop - first)
            yield ordered[cut]
            first += len(block)

    def _read(
        self, tensor: GgufTensor, start: int, stop: int, rows: int
    ) -> Iterator[npt.NDArray[np.uint8]]:
        buffer = np.empty((min(rows, stop - start), tensor.row_bytes), np.uint8)
        for first in range(start, stop, rows):
            block = buffer[: min(rows, stop - first)]
            view = block.reshape(-1).data
            offset = tensor.start + first * tensor.row_bytes
            tensor.file.read_into(view, offset, f"tensor {tensor.name!r}")
            yield block

    def _reordered_head(self, part: Part) -> int | None:
        """The size of a head where rows are reordered within heads."""
        base = part.name.rpartition(".")[0]
        if self._architecture.reordered and base.endswith((".q_proj", ".k_proj")):
            return int(self.config["head_dim"])
        return None

    def _factors(self) -> dict[str, list[float]]:
        """The tensors that divide rotary frequencies."""
        found = {}
        for name in _FACTORS:
            tensor = self._parts.tensors.get(name + ".weight")
            if tensor is None:
                continue
            if tensor.type_name != "F32" or len(tensor.shape) != 1:
                raise ModelError(f"tensor {tensor.name!r} of {tensor.file.path} is no row of F32.")
            found[name] = next(self._read(tensor, 0, 1, 1)).view(np.float32)[0].tolist()
        return found


def _widened(raw: npt.NDArray[np.uint8], tensor: GgufTensor) -> Array:
    """Rows of blocks as fp32, by the `gguf` package."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # infinite scales are found by who packs them
        rows: Array = dequantize(raw, GGMLQuantizationType(tensor.type_number))
    return rows


def _transformers_order(rows: int, head: int) -> npt.NDArray[np.int64]:
    """Where rows of whole heads stand in GGUF: row j * head / 2 + i of a head at row 2 i + j."""
    return np.arange(rows).reshape(-1, head // 2, 2).swapaxes(1, 2).reshape(-1)
