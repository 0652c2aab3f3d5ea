"""Random rows of GGUF's block types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

SCALES_AT = {
    **dict.fromkeys(("Q8_0", "Q5_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
"""Where the fp16 numbers stand in a block."""

EXPONENTS_AT = {"MXFP4": 0}
SMALL_UP_TO = {"NVFP4": 4}
"""Where the powers of two stand, and the floats of 8 bits."""


def set_scales(kind: str, blocks: np.ndarray, scales: np.ndarray) -> None:
    """Give blocks (..., block_bytes) these scales (...) where their type has its fp16 numbers, or
    the power of two below. IQ1_M has a quarter of the number in the high bits of each of 4 words.
    """
    for place in SCALES_AT.get(kind, ()):
        blocks[..., place : place + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    if kind in EXPONENTS_AT:
        with np.errstate(divide="ignore"):
            exponents = np.floor(np.log2(np.abs(scales.astype(np.float64)))) + 128
        blocks[..., EXPONENTS_AT[kind]] = np.maximum(exponents, 0).astype(np.uint8)
    if kind in SMALL_UP_TO:
        small = np.abs(scales).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        blocks[..., : SMALL_UP_TO[kind]] = small[..., None]
    if kind == "IQ1_M":
        words = np.ascontiguousarray(blocks[..., 48:56]).view(np.uint16)
        bits = scales.astype(np.float16).view(np.uint16)[..., None]
        parts = (bits << np.array([12, 8, 4, 0], np.uint16)) & np.uint16(0xF000)
        blocks[..., 48:56] = (words & np.uint16(0x0FFF) | parts).view(np.uint8)


def random_bytes(kind: str, outputs: int, inputs: int) -> np.ndarray:
    """Rows of a type with every code and every small factor, and fp16 numbers of both signs."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(outputs + inputs)
    raw = random.integers(0, 256, (outputs, inputs // block, block_bytes), np.uint8)
    for place in SCALES_AT.get(kind, ()):  # each its own, where there are two
        scale = random.uniform(-0.02, 0.02, raw.shape[:2]).astype(np.float16)
        raw[..., place : place + 2] = scale[..., None].view(np.uint8)
    if kind in SMALL_UP_TO:
        raw[..., : SMALL_UP_TO[kind]] &= 127  # which have no sign
    elif kind not in SCALES_AT:
        set_scales(kind, raw, random.uniform(-0.02, 0.02, raw.shape[:2]))
    return raw.reshape(outputs, -1)
