"""Checkpoints of gpt-oss: experts in MXFP4 as they are published, and a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.helpers.tiny import tiny_llama

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
QUANTISED = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}


def random_mxfp4(
    rng: np.random.Generator, experts: int, outputs: int, inputs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks (experts, outputs, inputs / 32, 16), scales, and the values (experts, outputs, inputs)
    that they stand for, such that a product keeps the size of its inputs."""
    codes = rng.integers(0, 16, (experts, outputs, inputs // 32, 32), np.uint8)
    spread = round(np.log2(inputs**-0.5 / 2.5))
    scales = rng.integers(126 + spread, 129 + spread, codes.shape[:3]).astype(np.uint8)
    powers = np.exp2(scales.astype(np.float32) - 127)
    values = (E2M1[codes] * powers[..., None]).reshape(experts, outputs, inputs)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scales, values


def quantise_experts(directory: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Give the experts of a plain checkpoint random weights in MXFP4. Gives the weights that the
    tensors stand for, as a plain checkpoint stores them."""
    rng, path = np.random.default_rng(seed), directory / "model.safetensors"
    tensors, plain = load_file(path), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks, scales, values = random_mxfp4(rng, experts, outputs, inputs)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = np.ascontiguousarray(values.transpose(0, 2, 1))
    save_file(tensors, path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISED}))
    return plain


def one_by_one(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a plain checkpoint with every expert's gate, up and down projection, and their
    biases, in tensors of their own; those of other architectures as they are."""
    found: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        block, _, own = name.partition("experts.")
        if not own.startswith(("gate_up_proj", "down_proj")):
            found[name] = value
            continue
        end = "bias" if own.endswith("_bias") else "weight"
        parts = {"down_proj": value}
        if own.startswith("gate_up_proj"):
            parts = {"gate_proj": value[..., 0::2], "up_proj": value[..., 1::2]}
        for part, stacked in parts.items():
            for number, one in enumerate(stacked):
                found[f"{block}experts.{number}.{part}.{end}"] = np.ascontiguousarray(one.T)
    return found


def tiny_gpt_oss(
    directory: Path, *, window: int = 20, experts: int = 5, mxfp4: bool = True, **config: Any
) -> Path:
    """A gpt-oss of two layers, the first of which has a window. Its sinks and biases matter."""
    tiny_llama(
        directory,
        **{
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "intermediate_size": 32,
            "sliding_window": window,
            "num_experts_per_tok": 2,
            "rope_parameters": YARN,
            **config,
        },
    )
    values = json.loads((directory / "config.json").read_text())
    values |= {"num_local_experts": experts, "attention_bias": True}
    (directory / "config.json").write_text(json.dumps(values))
    path, rng = directory / "model.safetensors", np.random.default_rng(11)
    tensors = {name: each for name, each in load_file(path).items() if ".mlp." not in name}
    width, inner = values["hidden_size"], values["intermediate_size"]

    def draw(*shape: int, scale: float = 0.5) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    for layer in range(values["num_hidden_layers"]):
        attention, mlp = (f"model.layers.{layer}.{part}." for part in ("self_attn", "mlp"))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            outputs = len(tensors[f"{attention}{name}.weight"])
            tensors[f"{attention}{name}.bias"] = draw(outputs)
        tensors[f"{attention}sinks"] = draw(values["num_attention_heads"], scale=2.0)
        tensors |= {
            f"{mlp}router.weight": draw(experts, width, scale=2 * width**-0.5),
            f"{mlp}router.bias": draw(experts),
            f"{mlp}experts.gate_up_proj": draw(experts, width, 2 * inner, scale=width**-0.5),
            f"{mlp}experts.gate_up_proj_bias": draw(experts, 2 * inner),
            f"{mlp}experts.down_proj": draw(experts, inner, width, scale=inner**-0.5),
            f"{mlp}experts.down_proj_bias": draw(experts, width),
        }
    save_file(tensors, path)
    if mxfp4:
        quantise_experts(directory)
    return directory
