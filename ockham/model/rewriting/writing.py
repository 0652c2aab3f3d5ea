"""A rewritten model as a checkpoint of its own: safetensors, config.json, what stands beside."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.core.owned_files import USUAL_FILE, replacing, write_own
from ockham.model.files.safetensors import DTYPES, SINGLE_FILE
from ockham.model.rewriting.model import RewrittenModel

CARD = "ockham_transforms"
"""The key of config.json under which the card of the transforms stands."""


def write_checkpoint(
    model: RewrittenModel,
    dtype: str,
    out: Path,
    beside: Callable[[], None],
    learned: Mapping[str, Floats] | None = None,
) -> int:
    """Write the model to a directory that exists, its tensors as `dtype` (float32 or bfloat16).
    `beside` writes the tokenizer's files; config.json comes last, so that what was interrupted is
    not taken for a model. `learned` are values that stand in the place of the model's own. Gives
    the bytes of the weights. Raises ModelError for values that are not finite."""
    name = "BF16" if dtype == "bfloat16" else "F32"
    tensors = list(model.tensors())
    entries, end = {}, 0
    for tensor, shape, _ in tensors:
        nbytes = math.prod(shape) * DTYPES[name].itemsize
        entries[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(out / SINGLE_FILE, USUAL_FILE) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor, _, values in tensors:
            own = values() if learned is None else learned[tensor]
            stored = np.ascontiguousarray(own.astype(DTYPES[name]))
            if not np.isfinite(stored).all():
                raise ModelError(
                    f"tensor {tensor!r} would hold NaN or infinity as {dtype}; nothing was written."
                    + " A lower rate may keep the training finite." * (learned is not None)
                )
            file.write(stored.view(np.uint8).data)
    beside()
    write_own(
        out / "config.json", json.dumps(plain_config(model, dtype), indent=2).encode(), USUAL_FILE
    )
    return end


def plain_config(model: RewrittenModel, dtype: str) -> dict[str, Any]:
    """config.json of weights that are no longer quantised."""
    left_out = ("compression_config", "quantization_config", "dtype")
    config = {key: value for key, value in model.config.items() if key not in left_out}
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = {k: v for k, v in text.items() if k not in left_out}
    return {**config, "torch_dtype": dtype}
