"""GGUF files for tests, written by the `gguf` package as llama.cpp's converter would."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from tests.helpers.gguf_blocks import set_scales

_ARCHITECTURES = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
_PERMUTED = (
    *("llama", "mistral3", "smollm3", "granite", "granitemoe", "granitehybrid", "minicpm"),
    *("nemotron_h", "nemotron_h_moe"),
)
"""Those whose queries and keys llama.cpp's converter reorders."""
_SHIFTED = ("gemma", "gemma2", "gemma3")
"""Those to whose norms it adds 1."""
_APART = {"conv", "mamba"}
"""Kinds of layers that do not attend."""
_BARE = (".ssm_a", ".ssm_d", ".scale")
"""Ends of tensors that are no weight of a matrix."""
_ROUTERS = (
    *(".block_sparse_moe.gate.weight", ".mlp.gate.weight", ".mlp.shared_expert_gate.weight"),
    *(".mlp.router.weight", ".router.layer.weight", ".router.proj.weight"),
)
"""What llama.cpp keeps in F32 whatever the file's type is."""

_EXPERT = re.compile(r"(.+\.experts\.)(\d+)\.(.+)")


def write_gguf(
    path: Path,
    architecture: str,
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    type_of: Callable[[str], str] = lambda name: "F32",
    metadata: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    extra: Mapping[str, np.ndarray] | None = None,
    split_max_tensors: int = 0,
) -> dict[str, np.ndarray]:
    """Write a checkpoint's weights; matrices (by their names in transformers) as `type_of` says.
    With `split_max_tensors` in parts of at most so many.

    Gives the weights as the file has them, dequantised by the `gguf` package.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    kinds = config.get("layer_types") or []
    writer.add_head_count_kv(
        [0 if kind in _APART else kv_heads for kind in kinds] if _APART & set(kinds) else kv_heads
    )
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(head_dim)
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if config.get(key):
            add(config[key])
    _add_experts(writer, config)
    metadata(writer)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[architecture], config["num_hidden_layers"])
    meant = {}
    for number, (name, value) in enumerate(_stacked(weights)):
        value = np.asarray(value, np.float32)
        stored = value
        if architecture in _PERMUTED and ("q_proj" in name or "k_proj" in name):
            stored = permute(value, heads if "q_proj" in name else kv_heads)
        shifted = architecture in _SHIFTED and name.endswith("norm.weight")
        if shifted:
            stored = value + np.float32(1)
        plain = value.ndim == 1 or name.endswith((".bias", *_ROUTERS))
        kind = Type.F32 if plain else Type[type_of(name)]
        raw, worth = encode(stored, kind, number)
        assert raw.dtype == np.uint8 or kind in (Type.F32, Type.F16)
        ours = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        raw = raw[0] if name.endswith(_ROUTERS[2]) else raw  # the converter squeezes it
        ours += "" if name.endswith((".weight", ".bias", *_BARE)) else ".weight"
        writer.add_tensor(ours, raw, raw_dtype=kind)
        if architecture in _PERMUTED and ("q_proj" in name or "k_proj" in name):
            worth = _unpermute(worth, heads if "q_proj" in name else kv_heads)
        if shifted:
            worth = value
        if ".experts." in name:
            start, end = name.split("experts.")
            meant |= {f"{start}experts.{n}.{end}": one for n, one in enumerate(worth)}
        else:
            meant[name] = worth
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _add_experts(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    count = config.get("num_experts") or config.get("num_local_experts")
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _stacked(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The weights with those of all experts as one, without their numbers in the name."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, value in weights.items():
        found = _EXPERT.fullmatch(name)
        if found:
            experts.setdefault(found[1] + found[3], {})[int(found[2])] = value
        else:
            yield name, value
    for name, values in experts.items():
        yield name, np.stack([values[number] for number in range(len(values))])


def encode(value: np.ndarray, kind: Type, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as bytes of a type, and what those are worth. Types that the package does not write
    are random blocks, whose values are below a fiftieth."""
    if kind == Type.F32:
        return value, value
    if kind == Type.F16:
        return value.astype(np.float16), value.astype(np.float16).astype(np.float32)
    try:
        raw = gguf.quants.quantize(value, kind)
    except NotImplementedError:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(seed)
        shape = (*value.shape[:-1], value.shape[-1] // block, block_bytes)
        blocks = rng.integers(0, 256, shape, dtype=np.uint8)
        set_scales(kind.name, blocks, np.ones(shape[:-1]))
        most = np.abs(gguf.quants.dequantize(blocks.reshape(-1, block_bytes), kind)).max()
        set_scales(kind.name, blocks, rng.uniform(0.01, 0.02, shape[:-1]) / most)
        raw = blocks.reshape(*value.shape[:-1], -1)
    return raw, gguf.quants.dequantize(raw, kind)


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def _unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    return (
        weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )
