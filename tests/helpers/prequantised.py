"""Quantised checkpoints for tests, packed by loops that follow the libraries which write them.

Each packer takes the codes (N, K), zero points (N, G) and scales (N, G) of a matrix and gives the
tensors that AutoGPTQ (`QuantLinear.pack`), AutoAWQ (`WQLinear_GEMM.from_linear`) and
compressed-tensors (`pack_to_int32`) would write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass
class Matrix:
    """A random quantised matrix, and what its weights are worth."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    group_of: np.ndarray  # (K,) the group of each input

    @property
    def weights(self) -> np.ndarray:
        steps = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.group_of]
        return steps * self.scales.astype(np.float32)[:, self.group_of]


def random_matrix(
    outputs: int,
    inputs: int,
    group: int,
    seed: int,
    *,
    bits: int = 4,
    symmetric: bool = True,
    dtype: Any = np.float16,
) -> Matrix:
    rng = np.random.default_rng(seed)
    groups, middle = inputs // group, 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (outputs, inputs), dtype=np.uint8)
    zeros = np.full((outputs, groups), middle, np.uint8)
    if not symmetric:
        zeros = rng.integers(1, (1 << bits) - 1, (outputs, groups), dtype=np.uint8)
    spread = 2.0 / (middle * np.sqrt(inputs))
    scales = (spread * rng.uniform(0.5, 1.5, (outputs, groups))).astype(dtype)
    return Matrix(codes, zeros, scales, np.arange(inputs) // group)


def words_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words along the last axis, the lowest bits first, with a plain loop."""
    per_word = 32 // bits
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // per_word), np.uint32)
    for i in range(codes.shape[-1]):
        words[..., i // per_word] |= codes[..., i].astype(np.uint32) << np.uint32(
            bits * (i % per_word)
        )
    return words.view(np.int32)


def gptq(matrix: Matrix, bits: int = 4, version: int = 1) -> dict[str, np.ndarray]:
    zeros = matrix.zeros - (1 if version == 1 else 0)
    return {
        "qweight": np.ascontiguousarray(words_of(matrix.codes, bits).T),
        "qzeros": words_of(np.ascontiguousarray(zeros.T), bits),
        "scales": np.ascontiguousarray(matrix.scales.T),
        "g_idx": matrix.group_of.astype(np.int32),
    }


def awq(matrix: Matrix) -> dict[str, np.ndarray]:
    def columns(codes: np.ndarray) -> np.ndarray:
        words = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for i, place in enumerate(AWQ_ORDER):
                words[:, column] |= codes[:, column * 8 + place].astype(np.uint32) << np.uint32(
                    4 * i
                )
        return words.view(np.int32)

    return {
        "qweight": columns(matrix.codes.T),
        "qzeros": columns(matrix.zeros.T),
        "scales": np.ascontiguousarray(matrix.scales.T),
    }


def pack_quantized(matrix: Matrix, bits: int = 4, symmetric: bool = True) -> dict[str, np.ndarray]:
    tensors = {
        "weight_packed": words_of(matrix.codes, bits),
        "weight_scale": matrix.scales,
        "weight_shape": np.array(matrix.codes.shape, np.int64),
    }
    if not symmetric:
        packed = words_of(np.ascontiguousarray(matrix.zeros.T), bits)
        tensors["weight_zero_point"] = np.ascontiguousarray(packed.T)
    return tensors


def int_quantized(matrix: Matrix) -> dict[str, np.ndarray]:
    return {
        "weight": (matrix.codes.astype(np.int16) - 128).astype(np.int8),
        "weight_scale": matrix.scales,
    }


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantise_checkpoint(
    directory: Path,
    config: dict[str, Any],
    pack: Callable[[Matrix], dict[str, np.ndarray]],
    make: Callable[[int, int, int], Matrix],
    *,
    plain: Any = ml_dtypes.bfloat16,
    kept: Callable[[str], bool] = lambda name: False,
) -> dict[str, np.ndarray]:
    """Replace the projections of the checkpoint in `directory` by random quantised ones, except
    those that `kept` says; `make` takes outputs, inputs and a seed.

    What is not quantised is stored as `plain`. Gives the weights that the checkpoint now has.
    """
    path = directory / "model.safetensors"
    stored, meant = {}, {}
    for seed, (name, value) in enumerate(load_file(path).items()):
        base = name.removesuffix("weight")
        if name.split(".")[-2] in PROJECTIONS and not kept(name):
            matrix = make(*value.shape, seed)
            stored |= {base + key: tensor for key, tensor in pack(matrix).items()}
            meant[name] = matrix.weights
        else:
            stored[name] = value.astype(plain)
            meant[name] = stored[name].astype(np.float32)
    save_file(stored, path)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**values, "quantization_config": config}))
    return meant
