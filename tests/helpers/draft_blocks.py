"""Blocks that draft for tiny models: of random weights, or such that they are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

MTP = {
    "mtp.layers.0.": "mtp.layers.0.",
    "join": "mtp.fc",
    "embedding_norm": "mtp.pre_fc_norm_embedding",
    "hidden_norm": "mtp.pre_fc_norm_hidden",
    "norm": "mtp.norm",
}
"""Qwen's names of the parts of a block."""


def deepseek_names(layers: int) -> dict[str, str]:
    """DeepSeek's and GLM's, of a model of so many layers."""
    prefix = f"model.layers.{layers}."
    return {
        "mtp.layers.0.": prefix,
        "join": f"{prefix}eh_proj",
        "embedding_norm": f"{prefix}enorm",
        "hidden_norm": f"{prefix}hnorm",
        "norm": f"{prefix}shared_head.norm",
    }


def add_mtp(
    checkpoint: Path, *, names: dict[str, str] = MTP, like: int = 0, right: bool = False
) -> Path:
    """Give a checkpoint a block whose layer is made like its own layer `like`, with weights drawn
    anew. If it is to be `right`, layers add nothing to the residual stream, so that each token
    follows from the one before it, and the block says the same."""
    path = checkpoint / "model.safetensors"
    tensors, rng = load_file(path), np.random.default_rng(7)
    size = json.loads((checkpoint / "config.json").read_text())["hidden_size"]
    own = f"model.layers.{like}."

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return rng.uniform(-0.3, 0.3, shape).astype(np.float32)
        return (rng.standard_normal(shape) * 2 / np.sqrt(shape[-1])).astype(np.float32)

    block = {
        names["mtp.layers.0."] + name[len(own) :]: drawn(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(own)
    }
    for part in ("embedding_norm", "hidden_norm", "norm"):
        block[f"{names[part]}.weight"] = drawn((size,))
    block[f"{names['join']}.weight"] = drawn((size, 2 * size))
    tensors |= block
    if right:
        ends = ("o_proj.weight", "out_proj.weight", "down_proj.weight")
        for name, tensor in tensors.items():
            if name.endswith(ends):
                tensor[...] = 0
        offset = tensors["model.norm.weight"].mean() > 0.5  # or weights are stored less 1
        for part in ("embedding_norm", "hidden_norm"):
            tensors[f"{names[part]}.weight"][...] = offset
        tensors[f"{names['norm']}.weight"] = tensors["model.norm.weight"].copy()
        tensors[f"{names['join']}.weight"] = np.eye(size, 2 * size, dtype=np.float32)
    save_file(tensors, path)
    return checkpoint


_OF_TARGETS = ("tie_word_embeddings", "partial_rotary_factor", "layer_types")
"""Keys of config.json that mean nothing to a head."""


def write_eagle3(
    directory: Path,
    target: Path,
    *,
    known: int | None = None,
    layers: tuple[int, ...] = (0, 0, 1),
    config: dict[str, Any] | None = None,
    middle: str = "midlayer.",
) -> Path:
    """An EAGLE-3 head for a tiny Llama, which reads hidden states after `layers` and knows `known`
    of the tokens, every second one."""
    values = json.loads((target / "config.json").read_text())
    size, heads, kv = (
        values[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head_dim = values.get("head_dim", size // heads)
    vocabulary, inner = values["vocab_size"], values["intermediate_size"]
    rng = np.random.default_rng(11)
    count = vocabulary if known is None else known

    def drawn(*shape: int) -> np.ndarray:
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return (rng.standard_normal(shape) * 2 / np.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        f"{middle}self_attn.q_proj.weight": drawn(heads * head_dim, 2 * size),
        f"{middle}self_attn.k_proj.weight": drawn(kv * head_dim, 2 * size),
        f"{middle}self_attn.v_proj.weight": drawn(kv * head_dim, 2 * size),
        f"{middle}self_attn.o_proj.weight": drawn(size, heads * head_dim),
        f"{middle}mlp.gate_proj.weight": drawn(inner, size),
        f"{middle}mlp.up_proj.weight": drawn(inner, size),
        f"{middle}mlp.down_proj.weight": drawn(size, inner),
        **{
            f"{middle}{name}.weight": drawn(size)
            for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")
        },
        "norm.weight": drawn(size),
        "fc.weight": drawn(size, len(layers) * size),
        "lm_head.weight": drawn(count, size),
    }
    if count != vocabulary:
        own = 2 * np.arange(count) % vocabulary
        tensors["d2t"] = (own - np.arange(count)).astype(np.int64)
        knows = np.zeros(vocabulary, np.bool_)
        knows[own] = True
        tensors["t2d"] = knows
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    described = {
        **{key: value for key, value in values.items() if key not in _OF_TARGETS},
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": count,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(layers)},
        **(config or {}),
    }
    (directory / "config.json").write_text(json.dumps(described))
    return directory
