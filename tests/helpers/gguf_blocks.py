"""Random rows of GGUF's block types."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

SCALES_AT = {"Q8_0": (0,), "Q5_0": (0,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q6_K": (208,)}


def random_bytes(kind: str, outputs: int, inputs: int) -> np.ndarray:
    """Rows of a type with every code and every small factor, and fp16 numbers of both signs."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(outputs + inputs)
    raw = random.integers(0, 256, (outputs, inputs // block, block_bytes), np.uint8)
    for place in SCALES_AT.get(kind, (0, 2)):
        scale = random.uniform(-0.02, 0.02, raw.shape[:2]).astype(np.float16)
        raw[..., place : place + 2] = scale[..., None].view(np.uint8)
    return raw.reshape(outputs, -1)
