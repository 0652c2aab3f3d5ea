"""Checkpoints in floats of 4 and 8 bits keep their weights to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.native import core
from ockham.kernels.ops import AttentionInput, FeedForward
from ockham.model.loading import LoadedModel, load_model, plan_model
from tests.helpers.float_checkpoints import FloatMatrix, fp8, mxfp4, nvfp4
from tests.helpers.prequantised import quantise_checkpoint
from tests.helpers.serving import ask, complete, make_engine
from tests.helpers.tiny import tiny_llama

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_hidden_layers": 1,
}
LAYER = "model.layers.0."


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 4, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


MXFP4 = compressed("mxfp4-pack-quantized", strategy="group", group_size=32)
NVFP4 = compressed("nvfp4-pack-quantized", strategy="tensor_group", group_size=16)
QWEN = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def make(
    directory: Path, config: dict[str, Any], matrix: Callable[[int, int, int], FloatMatrix]
) -> dict[str, np.ndarray]:
    tiny_llama(directory, **SIZES)
    return quantise_checkpoint(directory, config, lambda made: made.tensors, matrix)


def load(directory: Path, tell: Callable[[str], None] = lambda line: None) -> LoadedModel:
    return load_model(EngineConfig(model=str(directory), max_num_seqs=2, max_model_len=64), tell)


def check_bits(model: LoadedModel, meant: dict[str, np.ndarray]) -> set[str]:
    """Every weight of the first layer is the checkpoint's; gives the formats."""
    formats = set()
    for op in model.program.ops:
        match op:
            case AttentionInput():
                linear, names = op.qkv, [f"self_attn.{n}_proj" for n in "qkv"]
            case FeedForward():
                linear, names = op.down, ["mlp.down_proj"]
            case _:
                continue
        expected = np.concatenate([meant[f"{LAYER}{name}.weight"] for name in names])
        rows = linear.rows(np.arange(linear.out_features, dtype=np.int32))
        assert (rows == expected).all(), linear.format
        formats.add(linear.format)
    return formats


def test_mxfp4_of_compressed_tensors_is_held_to_the_bit(tmp_path: Path) -> None:
    meant = make(tmp_path, MXFP4, mxfp4)
    lines: list[str] = []
    assert check_bits(load(tmp_path, lines.append), meant) == {"mxfp4"}
    assert "MXFP4: 7 tensors are held in mxfp4, to the bit." in lines
    wide = load_model(EngineConfig(model=str(tmp_path), max_model_len=64, quantization="fp32"))
    assert check_bits(wide, meant) == {"fp32"}


def test_nvfp4_of_compressed_tensors_is_held_to_the_bit(tmp_path: Path) -> None:
    meant = make(tmp_path, NVFP4, nvfp4)
    lines: list[str] = []
    assert check_bits(load(tmp_path, lines.append), meant) == {"nvfp4"}
    assert "NVFP4: 7 tensors are held in nvfp4, to the bit." in lines
    wide = load_model(EngineConfig(model=str(tmp_path), max_model_len=64, quantization="fp32"))
    assert check_bits(wide, meant) == {"fp32"}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu])
def test_fp8_with_scales_of_blocks_is_held_to_the_bit(tmp_path: Path, dtype: Any) -> None:
    block = (128, 128)  # 320 inputs are two and a half
    meant = make(tmp_path, QWEN, lambda *size: fp8(*size, block, "weight_scale_inv", dtype))
    lines: list[str] = []
    assert check_bits(load(tmp_path, lines.append), meant) == {"fp8"}
    assert "FP8 (blocks of 128 x 128): 7 tensors are held in fp8, to the bit." in lines
    wide = load_model(EngineConfig(model=str(tmp_path), max_model_len=64, quantization="fp32"))
    assert check_bits(wide, meant) == {"fp32"}


def test_fp8_in_groups_that_no_kernel_has_is_widened_exactly_and_said(tmp_path: Path) -> None:
    config = QWEN | {"weight_block_size": [16, 30]}
    meant = make(
        tmp_path, config, lambda *size: fp8(*size, (16, 30), "weight_scale_inv", np.float32)
    )
    lines: list[str] = []
    assert check_bits(load(tmp_path, lines.append), meant) == {"fp32"}
    assert "FP8 (blocks of 16 x 30): 7 tensors are widened exactly to fp32." in lines


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_a_model_in_fp8_says_what_it_says_in_fp32(tmp_path: Path) -> None:
    make(tmp_path, QWEN, lambda *size: fp8(*size, (128, 128), "weight_scale_inv", np.float32))
    answers = []
    for quantization in (None, "fp8", "fp32"):
        settings = {"quantization": quantization, "kv_cache_dtype": "bfloat16"}
        engine = make_engine(tmp_path, backend="cpu", **settings)
        answers.append(complete(engine, [ask("a", [3, 1, 4, 1, 5], temperature=1.0, seed=3)]))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("tensor", {}), ("channel", {}), ("block", {"block_structure": [64, 32]})],
)
def test_fp8_of_compressed_tensors_is_held_to_the_bit(
    tmp_path: Path, strategy: str, more: dict[str, Any]
) -> None:
    def matrix(outputs: int, inputs: int, seed: int) -> FloatMatrix:
        blocks = {"tensor": None, "channel": (1, inputs), "block": (64, 32)}
        return fp8(outputs, inputs, seed, blocks[strategy], "weight_scale", np.float32)

    config = compressed("float-quantized", num_bits=8, strategy=strategy, **more)
    meant = make(tmp_path, config, matrix)
    assert check_bits(load(tmp_path), meant) == {"fp8"}


def test_one_scale_for_a_matrix_of_fp8_may_stand_alone_or_in_a_list(tmp_path: Path) -> None:
    config = {"quant_method": "fp8", "activation_scheme": "static"}

    def listed(outputs: int, inputs: int, seed: int) -> FloatMatrix:
        made = fp8(outputs, inputs, seed, None, "weight_scale", np.float32)
        made.tensors["weight_scale"] = made.tensors["weight_scale"].reshape(1)
        made.tensors["input_scale"] = np.ones(1, np.float32)
        return made

    lines: list[str] = []
    meant = make(tmp_path, config, listed)
    assert check_bits(load(tmp_path, lines.append), meant) == {"fp8"}
    assert not any("input_scale" in line for line in lines)


@pytest.mark.parametrize(
    ("config", "spoil", "sentence"),
    [
        (MXFP4, {"weight_scale": np.full((128, 10), 255, np.uint8)}, "NaN, or a scale too large"),
        (MXFP4, {"weight_scale": np.zeros((128, 5), np.uint8)}, "has the shape"),
        (NVFP4, {"weight_global_scale": np.zeros(1, np.float32)}, "scales are divided by zero"),
        (NVFP4, {"weight_global_scale": None}, "has no tensor '.*weight_global_scale'"),
        (QWEN, {"weight_scale_inv": np.full((1, 3), np.nan, np.float32)}, "a scale is NaN or inf"),
        (QWEN, {"weight_scale_inv": None}, "has no tensor '.*weight_scale_inv'"),
        (QWEN | {"fmt": "e5m2"}, {}, "fp8 of the kind 'e5m2' cannot be read"),
        (QWEN | {"weight_block_size": [128]}, {}, "weight_block_size .* must be two sizes"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, config: dict[str, Any], spoil: dict[str, np.ndarray | None], sentence: str
) -> None:
    def matrix(outputs: int, inputs: int, seed: int) -> FloatMatrix:
        if config is MXFP4 or config is NVFP4:
            made = (mxfp4 if config is MXFP4 else nvfp4)(outputs, inputs, seed)
        else:
            made = fp8(outputs, inputs, seed, (128, 128), "weight_scale_inv", np.float32)
        if (outputs, inputs) == (128, 320):  # the down projection
            made.tensors |= {name: value for name, value in spoil.items() if value is not None}
            made.tensors = {
                name: value
                for name, value in made.tensors.items()
                if spoil.get(name, 0) is not None
            }
        return made

    make(tmp_path, config, matrix)
    with pytest.raises(ModelError, match=sentence):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (compressed("mxfp4-pack-quantized", num_bits=8), "mxfp4-pack-quantized with 8 bits"),
        (compressed("nvfp4-pack-quantized", strategy="channel"), "the strategy 'channel'"),
        (compressed("mxfp8-quantized"), "'mxfp8-quantized' with weights of the type 'float'"),
    ],
)
def test_layouts_that_cannot_be_read_are_refused(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    make(tmp_path, config, mxfp4)
    with pytest.raises(ModelError, match=sentence):
        plan_model(EngineConfig(model=str(tmp_path)))
