"""What a layout of quantised tensors is, and what the layouts share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.model.files.safetensors import Checkpoint
from ockham.model.packed.packing import Stored
from ockham.model.program.weights import Part

SCALES = ("F16", "BF16", "F32")
ROWS_AT_ONCE = 512
"""Outputs that are unpacked at a time."""


class Codec(Protocol):
    """One way to store matrices quantised: which tensors stand for `NAME.weight`, and what they
    mean. `harmless` are endings of names of tensors that are not needed."""

    harmless: tuple[str, ...]

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        """Whether the checkpoint stores `NAME.weight` quantised."""
        ...

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        """From headers, and where they do not say enough from small tensors. Raises ModelError
        naming the tensor if its pieces are missing or contradict each other."""
        ...

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        """The rows [part.start, part.stop), not yet checked for faults of values, where `stored`
        gives an encoding."""
        ...

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        """The same rows, where `stored` names a format of blocks."""
        ...

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        """The same rows as floats, where `stored` gives no encoding."""
        ...


class IntegerCodec:
    """What a layout does not have whose codes are integers throughout."""

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        raise ModelError(f"tensor {part.name!r} is not stored in blocks.")

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        raise ModelError(f"tensor {part.name!r} is not stored as floats.")


def base_of(name: str) -> str:
    """`NAME.` of `NAME.weight`."""
    return name.removesuffix("weight")


def group_size(config: Mapping[str, Any], key: str, part: Part) -> int:
    """Inputs that share a scale; -1 stands for all. Raises ModelError if they do not divide."""
    inputs, group = part.shape[-1], config.get(key)
    if group is None or group == -1:
        return inputs
    if type(group) is not int or group < 1:
        raise ModelError(f"{key} of config.json's quantisation must be a size, not {group!r}.")
    if inputs % group:
        raise ModelError(
            f"tensor {part.name!r} has {inputs} inputs, which do not divide into groups of "
            f"{group}, as config.json says."
        )
    return group


def unpack(packed: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """The codes of 32-bit words along a new last axis, the lowest bits first."""
    words = packed.view(np.uint32)
    codes = np.empty((*words.shape, 32 // bits), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for place in range(32 // bits):
        codes[..., place] = (words >> np.uint32(bits * place)) & mask
    return codes


def fp16_holds(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> bool:
    """Whether every scale of a tensor is an fp16 number. Only scales of other types are read."""
    tensor = checkpoint.find(name, shape, SCALES)
    if tensor.dtype == "F16":
        return True
    scales = checkpoint.read(tensor).astype(np.float32)
    with np.errstate(over="ignore"):
        return bool((scales.astype(np.float16).astype(np.float32) == scales).all())


def row_slices(start: int, stop: int) -> Iterator[slice]:
    """[start, stop) in blocks."""
    for first in range(start, stop, ROWS_AT_ONCE):
        yield slice(first, min(first + ROWS_AT_ONCE, stop))
