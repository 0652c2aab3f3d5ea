"""Weights in floats of 8 bits (E4M3), with a scale for each block of rows and inputs.

DeepSeek-V3 and Qwen3 publish them so (`quant_method: fp8`): `weight` float8_e4m3fn (N, K),
`weight_scale_inv` (ceil(N / 128), ceil(K / 128)) for the blocks of `weight_block_size`, or one
scale for the matrix. A weight is the code's value times the scale, in fp32. The format fp8 holds
them as they are, or where it cannot they are widened. Inputs are not quantised, whatever
config.json says of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.model.checkpoint.prequantised.base import SCALES, base_of, row_slices
from ockham.model.files.safetensors import Checkpoint
from ockham.model.packed.packing import Stored
from ockham.model.program.weights import Part

CODES = "F8_E4M3"
SCALE_DTYPES = (*SCALES, "F8_E8M0")
MOST_SCALE = 2.0**119
"""Scales from here on are too large for the format."""


class Fp8:
    """The layout of the module's docstring."""

    harmless: tuple[str, ...] = (".input_scale", ".activation_scale")

    def __init__(self, config: Mapping[str, Any]) -> None:
        kind = config.get("fmt") or "e4m3"
        if kind not in ("e4m3", "float8_e4m3fn"):
            raise ModelError(f"fp8 of the kind {kind!r} cannot be read, only e4m3.")
        self._block = block_of(config.get("weight_block_size"), "weight_block_size")

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        tensor = checkpoint.tensors.get(name)
        return name.endswith(".weight") and tensor is not None and tensor.dtype == CODES

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        checkpoint.find(part.name, part.shape, (CODES,))
        name = self._scale_name(checkpoint, part)
        return as_stored(checkpoint, part, name, self._block)

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        raise ModelError(f"tensor {part.name!r} has no integer codes.")

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        yield from as_blocks(checkpoint, part, self._scale_name(checkpoint, part), self._block)

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        yield from widened(checkpoint, part, self._scale_name(checkpoint, part), self._block)

    @staticmethod
    def _scale_name(checkpoint: Checkpoint, part: Part) -> str:
        base = base_of(part.name)
        plain = base + "weight_scale"
        return plain if plain in checkpoint.tensors else base + "weight_scale_inv"


def block_of(value: Any, key: str) -> tuple[int, int] | None:
    """Rows and inputs that share a scale; None for all. Raises ModelError if it is neither."""
    if value is None:
        return None
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(type(size) is int and size > 0 for size in value)
    ):
        raise ModelError(f"{key} of config.json's quantisation must be two sizes, not {value!r}.")
    return value[0], value[1]


def describe(block: tuple[int, int] | None) -> str:
    return "FP8" if block is None else f"FP8 (blocks of {block[0]} x {block[1]})"


def find_scales(
    checkpoint: Checkpoint, name: str, part: Part, block: tuple[int, int] | None
) -> Floats:
    """The scales of a matrix: (rows of blocks, blocks in a row). Raises ModelError if they are
    missing, of another shape or not finite."""
    outputs, inputs = part.shape
    shape: tuple[int, ...] = ()
    if block is not None:
        shape = (-(-outputs // block[0]), -(-inputs // block[1]))
    elif name in checkpoint.tensors and checkpoint.tensors[name].shape in ((1,), (1, 1)):
        shape = checkpoint.tensors[name].shape
    scales = checkpoint.read(checkpoint.find(name, shape, SCALE_DTYPES)).astype(np.float32)
    if not np.isfinite(scales).all():
        raise ModelError(f"tensor {part.name!r}: a scale is NaN or infinite.")
    return scales if block is not None else scales.reshape(1, 1)


def as_stored(
    checkpoint: Checkpoint, part: Part, scale_name: str, block: tuple[int, int] | None
) -> Stored:
    """How a matrix is stored: in blocks that fp8 holds, unless its groups or scales are such that
    it cannot. Raises as `find_scales` does."""
    scales = find_scales(checkpoint, scale_name, part, block)
    names, inputs = (part.name, scale_name), part.shape[-1]
    width = inputs if block is None else block[1]
    if (width < inputs and width % 4) or (np.abs(scales) >= MOST_SCALE).any():
        return Stored(describe(block), names, opaque=True)
    return Stored(describe(block), names, blocks="fp8" if width >= inputs else f"fp8:{width}")


def as_blocks(
    checkpoint: Checkpoint, part: Part, scale_name: str, block: tuple[int, int] | None
) -> Iterator[BlockRows]:
    """Rows [part.start, part.stop): codes, and the scales (rows, G) of each."""
    for codes, scales in _rows(checkpoint, part, scale_name, block):
        yield BlockRows(codes.view(np.uint8), scales)


def widened(
    checkpoint: Checkpoint, part: Part, scale_name: str, block: tuple[int, int] | None
) -> Iterator[Floats]:
    """Rows [part.start, part.stop): codes times their scales."""
    inputs = part.shape[-1]
    width = inputs if block is None else block[1]
    for codes, scales in _rows(checkpoint, part, scale_name, block):
        yield codes.astype(np.float32) * np.repeat(scales, width, axis=1)[:, :inputs]


def _rows(
    checkpoint: Checkpoint, part: Part, scale_name: str, block: tuple[int, int] | None
) -> Iterator[tuple[Array, Floats]]:
    """Codes (rows, K) of rows [part.start, part.stop), and their scales (rows, G)."""
    scales = find_scales(checkpoint, scale_name, part, block)
    height = part.shape[0] if block is None else block[0]
    done = part.start
    for codes in checkpoint.blocks(
        checkpoint.find(part.name, part.shape, (CODES,)), part.start, part.stop
    ):
        for rows in row_slices(0, len(codes)):
            yield codes[rows], scales[np.arange(done + rows.start, done + rows.stop) // height]
        done += len(codes)
