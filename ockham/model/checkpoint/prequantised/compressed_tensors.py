"""Checkpoints of compressed-tensors (vLLM's LLM Compressor): `pack-quantized`, `int-quantized`.

For a matrix of N outputs and K inputs in G groups (G = 1 for the strategy 'channel'):

pack-quantized: `weight_packed` int32 (N, K * bits / 32), words along the inputs with the lowest
bits first, of codes to which 2 ** (bits - 1) was added; `weight_scale` (N, G); where not symmetric
`weight_zero_point` int32 (N * bits / 32, G), words along the outputs, with the same added;
`weight_shape`; `weight_g_idx` int32 (K,) where inputs were reordered (see gptq.py).

int-quantized: `weight` int8 (N, K); `weight_scale` (N, 1), or (1,) for the strategy 'tensor'.
Inputs must be quantised as they come ('dynamic') or not at all.

Floats of 4 and 8 bits: compressed_floats.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, Encoding, QuantisedRows
from ockham.model.checkpoint.prequantised.base import (
    SCALES,
    base_of,
    fp16_holds,
    group_size,
    row_slices,
    unpack,
)
from ockham.model.checkpoint.prequantised.compressed_floats import LAYOUTS as FLOATS
from ockham.model.checkpoint.prequantised.compressed_floats import FloatLayout
from ockham.model.files.safetensors import Checkpoint
from ockham.model.packed.packing import Stored
from ockham.model.program.weights import Part

LAYOUTS = ("pack-quantized", "int-quantized")


class CompressedTensors:
    """The layouts of the module's docstring, for 4 or 8 bits."""

    harmless: tuple[str, ...] = (
        *("weight_shape", "weight_g_idx", "weight_zero_point", ".bias"),
        *(".input_scale", ".input_global_scale"),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise ModelError(f"sparse tensors ({sparsity}) of compressed-tensors cannot be read.")
        groups = config.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise ModelError("quantization_config of config.json has no config_groups.")
        self._schemes = [_Scheme(str(n), g, config.get("format")) for n, g in groups.items()]

    def owns(self, checkpoint: Checkpoint, name: str) -> bool:
        base = base_of(name)
        return name.endswith(".weight") and base + "weight_scale" in checkpoint.tensors

    def stored(self, checkpoint: Checkpoint, part: Part) -> Stored:
        scheme, base = self._scheme(part), base_of(part.name)
        if scheme.floats is not None:
            return scheme.floats.stored(checkpoint, part)
        outputs, inputs = part.shape
        group = scheme.group(part)
        names = [base + ("weight_packed" if scheme.packed else "weight"), base + "weight_scale"]
        if scheme.packed:
            _check_words(names[0], inputs, scheme.per_word)
            checkpoint.find(names[0], (outputs, inputs // scheme.per_word), ("I32",))
            names += [base + n for n in ("weight_shape",) if base + n in checkpoint.tensors]
        else:
            checkpoint.find(names[0], (outputs, inputs), ("I8",))
        half = fp16_holds(checkpoint, names[1], scheme.scale_shape(part))
        if scheme.zeros:
            _check_words(base + "weight_zero_point", outputs, scheme.per_word)
            names.append(base + "weight_zero_point")
            zeros = (outputs // scheme.per_word, inputs // group)
            checkpoint.find(names[-1], zeros, ("I32",))
        if base + "weight_g_idx" in checkpoint.tensors:
            names.append(base + "weight_g_idx")
            if _order(checkpoint, part, group) is not None:
                group = 1
        encoding = Encoding(scheme.bits, group, half, scheme.zeros)
        return Stored(f"{scheme.layout} ({encoding.describe()})", tuple(names), encoding)

    def quantised(self, checkpoint: Checkpoint, part: Part) -> Iterator[QuantisedRows]:
        scheme, base = self._scheme(part), base_of(part.name)
        outputs, inputs = part.shape
        group = scheme.group(part)
        groups, middle = inputs // group, 1 << (scheme.bits - 1)
        stored_scales = checkpoint.read(
            checkpoint.find(base + "weight_scale", scheme.scale_shape(part), SCALES)
        )
        scales = np.broadcast_to(stored_scales.reshape(-1, groups), (outputs, groups))
        zeros = np.full((outputs, groups), middle, np.uint8)
        if scheme.zeros:
            shape = (outputs // scheme.per_word, groups)
            tensor = checkpoint.find(base + "weight_zero_point", shape, ("I32",))
            words = np.ascontiguousarray(checkpoint.read(tensor).T).view(np.int32)
            zeros = np.ascontiguousarray(unpack(words, scheme.bits).reshape(groups, outputs).T)
        order = _order(checkpoint, part, group)
        if order is not None:
            scales, zeros = scales[:, order], zeros[:, order]
        name = base + ("weight_packed" if scheme.packed else "weight")
        width = inputs // scheme.per_word if scheme.packed else inputs
        tensor = checkpoint.find(name, (outputs, width), ("I32" if scheme.packed else "I8",))
        done = part.start
        for block in checkpoint.blocks(tensor, part.start, part.stop):
            for rows in row_slices(0, len(block)):
                held = slice(done + rows.start, done + rows.stop)
                codes = scheme.codes(block[rows])
                yield QuantisedRows(codes, np.ascontiguousarray(scales[held]), zeros[held])
            done += len(block)

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[BlockRows]:
        yield from self._floats(part).blocks(checkpoint, part)

    def floats(self, checkpoint: Checkpoint, part: Part) -> Iterator[Array]:
        yield from self._floats(part).floats(checkpoint, part)

    def _floats(self, part: Part) -> FloatLayout:
        floats = self._scheme(part).floats
        if floats is None:
            raise ModelError(f"tensor {part.name!r} is not stored as floats.")
        return floats

    def _scheme(self, part: Part) -> _Scheme:
        module = part.name.removesuffix(".weight")
        for scheme in self._schemes:
            if scheme.names(module):
                return scheme
        for scheme in self._schemes:
            if "Linear" in scheme.targets:
                return scheme
        raise ModelError(f"config.json does not say how tensor {part.name!r} was quantised.")


class _Scheme:
    """One of the config_groups: how the modules that it names are quantised."""

    def __init__(self, name: str, config: Mapping[str, Any], layout: Any) -> None:
        weights = config.get("weights") or {}
        self.targets: list[str] = list(config.get("targets") or [])
        self.layout = config.get("format") or layout
        self.bits: int = weights.get("num_bits", 0)
        self.strategy = weights.get("strategy") or "tensor"
        self.packed = self.layout == "pack-quantized"
        self.zeros = not weights.get("symmetric", True)
        self._weights = weights
        kind = weights.get("type", "int")
        self.floats: FloatLayout | None = None
        if kind == "float" and self.layout in FLOATS:
            self.floats = FloatLayout(name, self.layout, weights)
            return
        if self.layout not in LAYOUTS or kind != "int":
            raise ModelError(
                f"compressed-tensors of the format {self.layout!r} with weights of the type "
                f"{kind!r} (group {name!r}) cannot be read, only {' and '.join(LAYOUTS)} of "
                f"integers, and {', '.join(FLOATS)} of floats."
            )
        if self.bits not in ((4, 8) if self.packed else (8,)):
            raise ModelError(
                f"{self.layout} with {self.bits!r} bits (group {name!r}) cannot be read."
            )
        if self.strategy not in (("group", "channel") if self.packed else ("channel", "tensor")):
            raise ModelError(
                f"{self.layout} with the strategy {self.strategy!r} (group {name!r}) cannot be "
                "read."
            )
        inputs = config.get("input_activations")
        if inputs and not inputs.get("dynamic", False):
            raise ModelError(
                f"group {name!r} of config.json quantises inputs by scales fixed beforehand; only "
                "inputs quantised as they come ('dynamic') are supported."
            )
        if self.zeros and not self.packed:
            raise ModelError(f"int-quantized with zero points (group {name!r}) cannot be read.")

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    def names(self, module: str) -> bool:
        """Whether a target names this module itself, or matches it as 're:PATTERN'."""
        return any(
            re.match(target[3:], module) is not None
            if target.startswith("re:")
            else target == module
            for target in self.targets
        )

    def group(self, part: Part) -> int:
        return group_size(self._weights if self.strategy == "group" else {}, "group_size", part)

    def scale_shape(self, part: Part) -> tuple[int, ...]:
        if self.strategy == "tensor":
            return (1,)
        return (part.shape[0], part.shape[-1] // self.group(part))

    def codes(self, block: Array) -> npt.NDArray[np.uint8]:
        """Rows as they are stored as codes from 0 on."""
        if self.packed:
            return unpack(block.view(np.int32), self.bits).reshape(len(block), -1)
        return block.view(np.uint8) ^ np.uint8(0x80)


def _check_words(name: str, count: int, per_word: int) -> None:
    if count % per_word:
        raise ModelError(f"tensor {name!r} cannot hold {count} codes in whole words.")


def _order(checkpoint: Checkpoint, part: Part, group: int) -> Array | None:
    """The group of each input, or None where they follow one another."""
    name, inputs = base_of(part.name) + "weight_g_idx", part.shape[-1]
    if name not in checkpoint.tensors:
        return None
    order = checkpoint.read(checkpoint.find(name, (inputs,), ("I32",)))
    if (order == np.arange(inputs) // group).all():
        return None
    if order.min() < 0 or order.max() >= inputs // group:
        raise ModelError(f"tensor {name!r} names groups that do not exist.")
    return order
