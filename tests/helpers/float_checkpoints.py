"""Matrices in floats of 4 and 8 bits, as checkpoints hold them, and what they are worth by
`ml_dtypes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass
class FloatMatrix:
    """Tensors by the end of their names, and the weights that they stand for."""

    tensors: dict[str, np.ndarray]
    weights: np.ndarray


def _halves(outputs: int, inputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random floats of 4 bits, packed with the first of two inputs low, and their values."""
    codes = np.random.default_rng(seed).integers(0, 16, (outputs, inputs), np.uint8)
    packed = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed, codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def mxfp4(outputs: int, inputs: int, seed: int) -> FloatMatrix:
    packed, values = _halves(outputs, inputs, seed)
    scales = np.random.default_rng(seed + 1).integers(115, 122, (outputs, inputs // 32), np.uint8)
    wide = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    return FloatMatrix(
        {"weight_packed": packed, "weight_scale": scales}, values * np.repeat(wide, 32, axis=1)
    )


def nvfp4(outputs: int, inputs: int, seed: int) -> FloatMatrix:
    packed, values = _halves(outputs, inputs, seed)
    random = np.random.default_rng(seed + 1)
    scales = random.uniform(1, 400, (outputs, inputs // 16)).astype(ml_dtypes.float8_e4m3fn)
    divisor = np.array([random.uniform(2e4, 4e4)], np.float32)
    wide = scales.astype(np.float32) / divisor
    tensors = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": divisor}
    return FloatMatrix(tensors, values * np.repeat(wide, 16, axis=1))


def fp8(
    outputs: int, inputs: int, seed: int, block: tuple[int, int] | None, name: str, dtype: Any
) -> FloatMatrix:
    """One scale for each block of so many rows and inputs, of which the last may be cut."""
    random = np.random.default_rng(seed)
    codes = random.normal(0, 60, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    height, width = block or (outputs, inputs)
    shape = (-(-outputs // height), -(-inputs // width))
    scales = random.uniform(2e-4, 5e-4, shape).astype(dtype)
    whole = np.repeat(np.repeat(scales.astype(np.float32), height, 0), width, 1)
    weights = codes.astype(np.float32) * whole[:outputs, :inputs]
    return FloatMatrix({"weight": codes, name: scales if block else scales.reshape(())}, weights)
