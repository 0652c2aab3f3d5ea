"""Quantised checkpoints keep their weights to the bit, whichever format holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import Linear
from ockham.kernels.ops import AttentionInput, AttentionOutput, FeedForward, Head
from ockham.model.loading import LoadedModel, load_model, plan_model
from tests.helpers.prequantised import (
    Matrix,
    awq,
    gptq,
    int_quantized,
    pack_quantized,
    quantise_checkpoint,
    random_matrix,
)
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_hidden_layers": 1,
}
PROMPTS = [[5, 9, 3, 60, 2, 7], [11], [3, 4]]


def load(directory: Path, **settings: Any) -> LoadedModel:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 64}
    return load_model(EngineConfig(model=str(directory), **{**defaults, **settings}))


def matrices(model: LoadedModel) -> dict[str, tuple[Linear, tuple[str, ...]]]:
    """The packed matrices of the first layer and the head, and the tensors that they consist of."""
    found: dict[str, tuple[Linear, tuple[str, ...]]] = {}
    layer = "model.layers.0."
    attention, mlp = layer + "self_attn.", layer + "mlp."
    for op in model.program.ops:
        match op:
            case AttentionInput():
                found["qkv"] = op.qkv, tuple(attention + f"{n}_proj.weight" for n in "qkv")
            case AttentionOutput():
                found["out"] = op.out, (attention + "o_proj.weight",)
            case FeedForward():
                gate_up = (mlp + "gate_proj.weight", mlp + "up_proj.weight")
                found["gate_up"] = op.gate_up, gate_up
                found["down"] = op.down, (mlp + "down_proj.weight",)
            case Head():
                found["head"] = op.out, ("lm_head.weight",)
    return found


def check_bits(model: LoadedModel, meant: dict[str, np.ndarray]) -> dict[str, str]:
    """Every weight of every matrix is the checkpoint's; gives the format of each matrix."""
    formats = {}
    for name, (linear, tensors) in matrices(model).items():
        expected = np.concatenate([meant[tensor] for tensor in tensors])
        rows = linear.rows(np.arange(linear.out_features, dtype=np.int32))
        assert (rows == expected).all(), f"{name} in {linear.format}"
        formats[name] = linear.format
    return formats


def compressed(weights: dict[str, Any], layout: str, **group: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": {"type": "int", **weights}, **group}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


def make(
    directory: Path,
    config: dict[str, Any],
    pack: Callable[[Matrix], dict[str, np.ndarray]],
    group: int | None,
    **matrix: Any,
) -> dict[str, np.ndarray]:
    """A tiny checkpoint quantised so; `group` None is one group of all inputs."""
    tiny_llama(directory, **SIZES)
    return quantise_checkpoint(
        directory,
        config,
        pack,
        lambda rows, columns, seed: random_matrix(rows, columns, group or columns, seed, **matrix),
    )


GPTQ = {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
INT4 = {"num_bits": 4, "symmetric": True, "strategy": "group"}
INT8 = {"num_bits": 8, "symmetric": True, "strategy": "channel"}


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_weights_are_held_in_int4_to_the_bit(
    tmp_path: Path, group: int, symmetric: bool, version: int
) -> None:
    layout = "gptq" if version == 1 else "gptq_v2"
    config = {**GPTQ, "group_size": group, "sym": symmetric, "checkpoint_format": layout}
    meant = make(tmp_path, config, lambda m: gptq(m, version=version), group, symmetric=symmetric)
    model = load(tmp_path)
    formats = check_bits(model, meant)
    assert formats.pop("head") == "bf16"
    assert set(formats.values()) == {"int4"}
    for linear, _ in matrices(model).values():
        if linear.format == "int4":
            held = linear.in_features // linear.arrays["scale"].shape[1]
            assert held == group
            assert ("zero" in linear.arrays) == (not symmetric)


def test_awq_weights_are_held_in_int4_to_the_bit(tmp_path: Path) -> None:
    meant = make(tmp_path, {**AWQ, "group_size": 64}, awq, 64, symmetric=False)
    model = load(tmp_path)
    formats = check_bits(model, meant)
    assert formats == dict.fromkeys(("qkv", "out", "gate_up", "down"), "int4") | {"head": "bf16"}
    assert model.weight_format == "int4+bf16"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_packed_int4_of_compressed_tensors_is_held_to_the_bit(
    tmp_path: Path, symmetric: bool, dtype: Any
) -> None:
    weights = {**INT4, "group_size": 32, "symmetric": symmetric}
    meant = make(
        tmp_path,
        compressed(weights, "pack-quantized"),
        lambda m: pack_quantized(m, symmetric=symmetric),
        32,
        symmetric=symmetric,
        dtype=dtype,
    )
    formats = check_bits(load(tmp_path), meant)
    assert formats.pop("head") == "bf16"
    assert set(formats.values()) == {"int4"}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_int8_by_channel_of_compressed_tensors_is_held_to_the_bit(
    tmp_path: Path, dtype: Any
) -> None:
    inputs = {"num_bits": 8, "dynamic": True, "strategy": "token", "type": "int"}
    config = compressed(INT8, "int-quantized", input_activations=inputs)
    meant = make(tmp_path, config, int_quantized, None, bits=8, dtype=dtype)
    formats = check_bits(load(tmp_path), meant)
    assert formats == dict.fromkeys(("qkv", "out", "gate_up", "down"), "int8") | {"head": "bf16"}


def test_one_scale_for_all_inputs_is_repeated_for_groups_of_128(tmp_path: Path) -> None:
    meant = make(tmp_path, {**GPTQ, "group_size": -1}, gptq, None)
    model = load(tmp_path)
    assert check_bits(model, meant)["down"] == "int4"
    assert matrices(model)["down"][0].arrays["scale"].shape[1] == 2  # 256 inputs


def test_8_bits_with_one_scale_are_held_in_int8(tmp_path: Path) -> None:
    config = {**GPTQ, "bits": 8, "group_size": -1}
    meant = make(tmp_path, config, lambda m: gptq(m, bits=8), None, bits=8)
    assert check_bits(load(tmp_path), meant)["down"] == "int8"


def test_what_no_format_holds_is_widened_exactly_and_said(tmp_path: Path) -> None:
    config = {**GPTQ, "bits": 8, "group_size": 32, "sym": False}
    meant = make(tmp_path, config, lambda m: gptq(m, bits=8), 32, bits=8, symmetric=False)
    lines: list[str] = []
    model = load_model(
        EngineConfig(model=str(tmp_path), max_model_len=64, max_num_seqs=2), lines.append
    )
    formats = check_bits(model, meant)
    assert set(formats.values()) == {"fp32", "bf16"}
    said = "GPTQ (8 bits in groups of 32 with zero points): 7 tensors are widened exactly to fp32."
    assert said in lines


def test_inputs_in_the_order_of_their_activations_are_widened_exactly(tmp_path: Path) -> None:
    def shuffled(rows: int, columns: int, seed: int) -> Matrix:
        matrix = random_matrix(rows, columns, 64, seed)
        matrix.group_of = np.random.default_rng(seed).permutation(matrix.group_of)
        return matrix

    tiny_llama(tmp_path, **SIZES)
    config = {**GPTQ, "group_size": 64, "desc_act": True}
    meant = quantise_checkpoint(tmp_path, config, gptq, shuffled)
    assert check_bits(load(tmp_path), meant)["down"] == "fp32"


def test_desc_act_with_inputs_in_order_is_held_in_int4(tmp_path: Path) -> None:
    meant = make(tmp_path, {**GPTQ, "group_size": 64, "desc_act": True}, gptq, 64)
    assert check_bits(load(tmp_path), meant)["down"] == "int4"


def test_a_matrix_of_which_one_part_is_not_quantised_is_widened(tmp_path: Path) -> None:
    tiny_llama(tmp_path, **SIZES)
    meant = quantise_checkpoint(
        tmp_path,
        {**AWQ, "group_size": 64, "modules_to_not_convert": ["k_proj"]},
        awq,
        lambda rows, columns, seed: random_matrix(rows, columns, 64, seed, symmetric=False),
        kept=lambda name: "k_proj" in name,
    )
    formats = check_bits(load(tmp_path), meant)
    assert (formats["qkv"], formats["out"]) == ("fp32", "int4")


def test_asking_for_fp32_widens_everything_and_gives_the_same_logits(tmp_path: Path) -> None:
    """The plan of both runs differs in the precision of activations only."""
    meant = make(tmp_path / "gptq", {**GPTQ, "group_size": 32}, gptq, 32)
    tiny_llama(tmp_path / "plain", **SIZES)
    save_file(meant, tmp_path / "plain" / "model.safetensors")
    wide = load(tmp_path / "gptq", quantization="fp32")
    assert wide.weight_format == "fp32"
    plain = load(tmp_path / "plain", dtype="float32")
    expected = prompt_logits(plain, PROMPTS, 4)
    for found, wanted in zip(prompt_logits(wide, PROMPTS, 4), expected, strict=True):
        assert (found == wanted).all()
    native = prompt_logits(load(tmp_path / "gptq"), PROMPTS, 4)
    for found, wanted in zip(native, expected, strict=True):
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99


def test_a_quantization_named_as_the_checkpoint_s_own_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32)
    assert load(tmp_path, quantization="gptq").numerics_id == load(tmp_path).numerics_id
    with pytest.raises(ConfigError, match="not quantised as 'awq', but as 'gptq'"):
        load(tmp_path, quantization="awq")


def edit(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


DOWN = "model.layers.0.mlp.down_proj."


def test_scales_that_are_not_finite_are_refused_with_the_tensor(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32)
    for value in (np.nan, np.inf):

        def spoil(tensors: dict[str, np.ndarray], value: float = value) -> None:
            tensors[DOWN + "scales"][1, 3] = value

        edit(tmp_path, spoil)
        for settings in ({}, {"quantization": "fp32"}):
            with pytest.raises(ModelError, match=f"{DOWN}weight': a scale is NaN or infinite"):
                load(tmp_path, **settings)


def test_a_scale_of_zero_is_refused_unless_the_weights_are_zero(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32)

    def lose_scale(tensors: dict[str, np.ndarray]) -> None:
        tensors[DOWN + "scales"][1, 3] = 0

    edit(tmp_path, lose_scale)
    with pytest.raises(ModelError, match=f"{DOWN}weight': a scale is zero, but its weights"):
        load(tmp_path)

    def set_codes(tensors: dict[str, np.ndarray]) -> None:
        words = tensors[DOWN + "qweight"].view(np.uint32)
        words[4:8, 3] = 0x88888888

    edit(tmp_path, set_codes)
    rows = matrices(load(tmp_path))["down"][0].rows(np.array([3], np.int32))
    assert not rows[0, 32:64].any()
    assert rows[0, :32].any()


def test_zero_points_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32, symmetric=False)
    with pytest.raises(ModelError, match=r"weight': there is a zero point other than 8"):
        load(tmp_path)


def test_an_ambiguous_zero_point_of_the_first_convention_is_refused(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32, "sym": False}, gptq, 32, symmetric=False)

    def overflow(tensors: dict[str, np.ndarray]) -> None:
        tensors[DOWN + "qzeros"][0, 0] = -1

    edit(tmp_path, overflow)
    with pytest.raises(ModelError, match=f"{DOWN}qzeros' holds the zero point 15 less one"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"group_size": 48}, "has 128 inputs, which do not divide into groups of 48"),
        ({"group_size": 64}, "qzeros' of .* has the shape .* but config.json implies"),
        ({"bits": 8}, "qweight' of .* has the shape"),
        ({"bits": 3}, "GPTQ with 3 bits cannot be read"),
        ({"checkpoint_format": "marlin"}, "the GPTQ layout 'marlin' cannot be read"),
        ({"dynamic": {"+:.*": {"bits": 8}}}, "settings for single modules"),
        ({"group_size": "x"}, "must be a size, not 'x'"),
        ({"quant_method": "hqq"}, "is quantised as 'hqq', which cannot be read; gptq, awq"),
        ({"quant_method": "awq", "version": "gemv"}, "the AWQ layout 'gemv' cannot be read"),
        ({"quant_method": "awq"}, "qweight' of .* has the shape"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=sentence):
        plan_model(EngineConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (compressed(INT4, "nvfp4-pack-quantized"), "weights of the type 'int' .* cannot be read"),
        (compressed({**INT4, "num_bits": 3}, "pack-quantized"), "with 3 bits"),
        (compressed({**INT8, "strategy": "block"}, "int-quantized"), "the strategy 'block'"),
        (
            compressed(INT8, "int-quantized", input_activations={"dynamic": False}),
            "scales fixed beforehand",
        ),
        ({"quant_method": "compressed-tensors"}, "has no config_groups"),
    ],
)
def test_layouts_of_compressed_tensors_that_cannot_be_read_are_refused(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    make(tmp_path, config, int_quantized, None, bits=8)
    with pytest.raises(ModelError, match=sentence):
        plan_model(EngineConfig(model=str(tmp_path)))


def test_a_missing_piece_and_a_tensor_held_twice_are_refused(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32)
    edit(tmp_path, lambda tensors: tensors.update({DOWN + "weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(ModelError, match=f"{DOWN}weight' twice, quantised and not"):
        load(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop(DOWN + "weight"))
    edit(tmp_path, lambda tensors: tensors.pop(DOWN + "scales"))
    with pytest.raises(ModelError, match=f"has no tensor '{DOWN}scales'"):
        load(tmp_path)


def test_quantised_tensors_that_config_json_does_not_mention_are_refused(tmp_path: Path) -> None:
    make(tmp_path, {**GPTQ, "group_size": 32}, gptq, 32)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has no tensor '.*q_proj\.weight'"):
        load(tmp_path)
