"""From config.json to the layout of a checkpoint's quantised tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ockham.core.errors import ModelError
from ockham.model.checkpoint.prequantised.awq import Awq
from ockham.model.checkpoint.prequantised.base import Codec
from ockham.model.checkpoint.prequantised.bitnet import ONLINE, BitNet
from ockham.model.checkpoint.prequantised.compressed_tensors import CompressedTensors
from ockham.model.checkpoint.prequantised.fp8 import Fp8
from ockham.model.checkpoint.prequantised.gptq import Gptq
from ockham.model.checkpoint.prequantised.interleaved import Interleaved
from ockham.model.program.description import ModelDescription

CODECS: dict[str, Callable[[Mapping[str, Any]], Codec]] = {
    "gptq": Gptq,
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "bitnet": BitNet,
}
"""quant_method of config.json -> its reader."""


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says of quantisation, also inside of its text part; None if nothing.

    Raises ModelError if that is no object."""
    for part in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key)
            if found is not None and not isinstance(found, Mapping):
                raise ModelError(f"{key} of config.json must be an object, not {found!r}.")
            if found:
                return {"quant_method": "compressed-tensors", **found} if key[0] == "c" else found
    return None


def find_codec(config: Mapping[str, Any], description: ModelDescription) -> Codec | None:
    """The reader of the tensors of a checkpoint that are not stored as the compiler asks for them:
    quantised ones, transposed experts, and ternary ones of architectures that are ternary
    throughout; None if there are none.

    Raises ModelError for a method, or settings of it, that cannot be read."""
    quantised = quantization_config(config)
    record, experts = description.architecture.experts, description.experts
    # Quantised experts are published one by one, but for those whose gates and ups take turns.
    stacked = record is not None and (record.interleaved or (record.transposed and not quantised))
    if record is not None and experts is not None and stacked:
        return Interleaved(record, experts.count, quantised or {})
    if quantised is None and description.architecture.ternary:
        return BitNet(ONLINE, (f"{description.architecture.table}.weight",))
    if quantised is None:
        return None
    method = quantised.get("quant_method")
    if method not in CODECS:
        raise ModelError(
            f"config.json says that the checkpoint is quantised as {method!r}, which cannot be "
            f"read; {', '.join(CODECS)} can, and unquantised checkpoints."
        )
    return CODECS[method](quantised)
