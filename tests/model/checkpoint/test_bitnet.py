"""BitNet: ternary weights as they are published, packed or to be rounded, and as GGUF files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import AttentionInput, FeedForward
from ockham.model.checkpoint.gguf.types import FORK_TYPES
from ockham.model.checkpoint.prequantised.bitnet import BitNet
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.gguf_files import write_gguf
from tests.helpers.oracle import COMMON, Case, oracle_logits
from tests.helpers.steps import prompt_logits

CASE = Case(
    "BitNet",
    {"intermediate_size": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    longest=41,
)
KINDS: dict[str, dict[str, Any]] = {
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "packed": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "packed, divided": {"linear_class": "bitlinear"},
}


def linears(oracle: Any) -> dict[str, torch.nn.Linear]:
    """Those whose weights are ternary."""
    found = oracle.named_modules()
    return {
        name: module
        for name, module in found
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def signs_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-1, 0 and 1, and the scale of all: the mean magnitude."""
    mean = weight.abs().mean().clamp(min=1e-5)
    return (weight / mean).round().clamp(-1, 1), mean.reshape(1)


def quantised(oracle: Any, kind: str, directory: Path) -> Any:
    """Give a model the products of transformers' BitNet, and write its checkpoint."""
    oracle.save_pretrained(directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, linear in linears(oracle).items():
        sizes = (linear.in_features, linear.out_features)
        signs, scale = signs_of(linear.weight.data)
        if kind == "online":
            made: Any = AutoBitLinear(*sizes, bias=False, online_quant=True)
            made.weight.data = linear.weight.data
        elif kind == "packed":
            made = AutoBitLinear(*sizes, bias=False)
            made.weight.data, made.weight_scale = signs, scale
        else:
            made = BitLinear(*sizes, bias=False, dtype=torch.float32)
            scale = 1 / scale
            made.weight, made.weight_scale = pack_weights(signs.clone()), scale
        if kind != "online":
            tensors[f"{name}.weight"] = pack_weights(signs.clone()).numpy()
            tensors[f"{name}.weight_scale"] = scale.numpy()
        oracle.set_submodule(name, made)
    save_file(tensors, path)
    say(directory, **KINDS[kind])
    return oracle


def say(directory: Path, **quantization: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", **quantization}
    (directory / "config.json").write_text(json.dumps(config))


def load(path: Path, **settings: Any) -> LoadedModel:
    own = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128, "kv_cache_dtype": "float32"}
    return load_model(EngineConfig(model=str(path), **{**own, **settings}))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """But where an input lies between two integers, which the order of a sum decides: such a token
    differs by a step of one input in 127."""
    torch.compiler.set_stance("force_eager")
    try:
        oracle = quantised(CASE.build(), kind, tmp_path)
        expected = oracle_logits(oracle, CASE.prompts())
    finally:
        torch.compiler.set_stance("default")
    spread = max(float(np.ptp(each)) for each in expected)
    model = load(tmp_path)
    assert set(model.weight_format.split("+")) == {"ternary", "fp32"}
    for chunk in (1, 7, 512):
        found = prompt_logits(model, CASE.prompts(), chunk)
        off = np.concatenate(
            [np.abs(f - e).max(axis=1) for f, e in zip(found, expected, strict=True)]
        )
        assert np.mean(off < 1e-4 * spread) > 0.9
        assert off.max() < 0.02 * spread


@pytest.mark.parametrize("kind", ["packed", "packed, divided"])
def test_packed_weights_are_held_to_the_bit(tmp_path: Path, kind: str) -> None:
    oracle = CASE.build()
    weights = {name: signs_of(linear.weight.data) for name, linear in linears(oracle).items()}
    quantised(oracle, kind, tmp_path)
    held = [op for op in load(tmp_path).program.ops if isinstance(op, AttentionInput | FeedForward)]
    matrices = {"self_attn": ("q", "k", "v"), "mlp": ("gate", "up")}
    for op in held:
        block = "self_attn" if isinstance(op, AttentionInput) else "mlp"
        linear = op.qkv if isinstance(op, AttentionInput) else op.gate_up
        own = [weights[f"model.layers.{op.layer}.{block}.{n}_proj"] for n in matrices[block]]
        scales = [1 / (1 / scale) if "divided" in kind else scale for _, scale in own]
        meant = np.concatenate([(s * f).numpy() for (s, _), f in zip(own, scales, strict=True)])
        assert (linear.rows(np.arange(len(meant), dtype=np.int32)) == meant).all()


def test_weights_in_bf16_are_rounded_to_the_scale_that_bf16_holds(tmp_path: Path) -> None:
    """As transformers rounds them, whose weights keep their dtype."""
    oracle = CASE.build().to(torch.bfloat16)
    name = "model.layers.0.mlp.down_proj"
    weight = linears(oracle)[name].weight.data
    oracle.save_pretrained(tmp_path)
    say(tmp_path, **KINDS["online"])
    op = next(op for op in load(tmp_path).program.ops if isinstance(op, FeedForward))
    signs, scale = signs_of(weight.float())
    found = op.down.rows(np.arange(len(weight), dtype=np.int32))
    assert np.array_equal(found, (signs * scale.to(torch.bfloat16).float()).numpy())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"linear_class": "other"}, "the linear_class 'other' cannot be read"),
        ({"quantization_mode": "never"}, "the quantization_mode 'never' cannot be read"),
        ({"use_rms_norm": True}, "a norm before each product"),
    ],
)
def test_what_cannot_be_read_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        BitNet(settings)


def test_a_code_that_is_none_is_refused(tmp_path: Path) -> None:
    quantised(CASE.build(), "packed", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj.*neither -1, 0 nor 1 stands in rows"):
        load(tmp_path)


def packed_i2_s(signs: np.ndarray) -> np.ndarray:
    """Rows of bitnet.cpp's bytes: of 128 values the n-th quarter stands in bits 6 - 2 n."""
    codes = (signs + 1).astype(np.uint8).reshape(len(signs), -1, 4, 32)
    return np.bitwise_or.reduce(codes << np.array([6, 4, 2, 0], np.uint8)[:, None], axis=2)


def test_files_of_bitnet_cpp_are_held_to_the_bit(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    oracle = Case("BitNet", sizes).build()
    weights = {
        re.sub(r"model\.layers\.0\.\w+\.(\w+_sub_norm)", r"blk.0.\1", name): value.numpy()
        for name, value in oracle.state_dict().items()
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BITNET, 1)
    meant = {}

    def ternary(writer: gguf.GGUFWriter) -> None:
        """The blocks of a matrix, then its scale in 32 bytes."""
        for name in linears(oracle):
            signs, scale = signs_of(torch.tensor(weights.pop(f"{name}.weight")))
            meant[name] = (signs * scale).numpy()
            packed = packed_i2_s(signs.numpy()).reshape(-1).view(np.float32)
            raw = np.concatenate([packed, scale.numpy(), np.zeros(7, np.float32)])
            own = f"{names.get_name(name)}.weight"
            writer.add_tensor(own, raw)
            writer.tensors[-1][own].shape = tuple(signs.shape)
            writer.tensors[-1][own].dtype = next(iter(FORK_TYPES))

    config = {**COMMON, **sizes, "rms_norm_eps": 1e-5}
    write_gguf(tmp_path / "m.gguf", "bitnet", config, weights, metadata=ternary)
    model = load(tmp_path / "m.gguf")
    assert "ternary" in model.weight_format
    (op,) = (op for op in model.program.ops if isinstance(op, FeedForward))
    expected = [meant[f"model.layers.0.mlp.{name}_proj"] for name in ("gate", "up")]
    found = op.gate_up.rows(np.arange(512, dtype=np.int32))
    assert np.array_equal(found, np.concatenate(expected))
