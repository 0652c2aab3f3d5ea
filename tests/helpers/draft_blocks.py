"""Blocks that draft for tiny models: of random weights, or such that they are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from ockham.core.seams import Rows
from ockham.draft.modelled.carrying import CarryingDrafter
from ockham.engine.engine import Engine
from ockham.engine.runner.head_model import HeadModel

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


_IN_GGUF = {
    "join": "nextn.eh_proj",
    "embedding_norm": "nextn.enorm",
    "hidden_norm": "nextn.hnorm",
    "norm": "nextn.shared_head_norm",
}


def as_in_gguf(
    weights: Mapping[str, np.ndarray], names: dict[str, str], layers: int
) -> dict[str, np.ndarray]:
    """The tensors of a model of so many layers, those of its block where GGUF files have them."""
    starts = {f"{names[part]}.": f"blk.{layers}.{own}." for part, own in _IN_GGUF.items()}
    starts[names["mtp.layers.0."]] = f"model.layers.{layers}."

    def renamed(name: str) -> str:
        for start, own in starts.items():
            if name.startswith(start):
                return own + name[len(start) :]
        return name

    return {renamed(name): tensor for name, tensor in weights.items()}


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


def block_of(engine: Engine) -> HeadModel:
    """The block that drafts in an engine, alone."""
    (drafter,) = engine.speculation.drafters
    assert isinstance(drafter, CarryingDrafter)
    assert isinstance(drafter.model, HeadModel)
    return drafter.model


def said_by_block(engine: Engine, tokens: list[int], states: list[np.ndarray]) -> np.ndarray:
    """The logits that the block gives behind each token of a text but the first, read in two runs;
    `states` are the model's hidden states after the layers that the block reads, (T, d)."""
    block = block_of(engine)
    view = block.open()
    carried = block.carry([each[:-1] for each in states])
    found = []
    for place in range(1, len(tokens)):
        assert block.reserve(view, place)
        row = Rows(view, [tokens[place]], beside=carried[place - 1 : place])
        found.append(block.run([row], 4).logits[0])
    again = block.open()
    half = len(tokens) // 2
    assert block.reserve(again, len(tokens) - 1)
    for part in (slice(0, half), slice(half, len(tokens) - 1)):
        chunk = Rows(again, tokens[1:][part], beside=carried[part])
        logits = block.run([chunk], 4).logits[0]
        np.testing.assert_allclose(logits, found[part.stop - 1], rtol=0, atol=1e-5)
    block.release(view)
    block.release(again)
    return np.stack(found)


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


_LAYER_OF_GGUF = {
    "input_layernorm.weight": "attn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.q_norm.weight": "attn_q_norm",
    "self_attn.o_proj.weight": "attn_output",
    "post_attention_layernorm.weight": "post_attention_norm",
    "pre_feedforward_layernorm.weight": "ffn_norm",
    "post_feedforward_layernorm.weight": "post_ffw_norm",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
    "layer_scalar": "layer_output_scale",
}
_OUTSIDE_OF_GGUF = {
    "model.embed_tokens.weight": "token_embd",
    "model.norm.weight": "output_norm",
    "pre_projection.weight": "nextn.pre_projection",
    "post_projection.weight": "nextn.post_projection",
}


def assistant_as_gguf(assistant: Path, path: Path) -> Path:
    """An assistant of `write_assistant`, as llama.cpp's converter (conversion/gemma.py) writes it:
    without clusters of tokens."""
    values = json.loads((assistant / "config.json").read_text())
    text, writer = values["text_config"], gguf.GGUFWriter(path, "gemma4-assistant")
    head_dim, whole, layers = text["head_dim"], text["global_head_dim"], text["num_hidden_layers"]
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_embedding_length_out(values["backbone_hidden_size"])
    writer.add_block_count(layers)
    writer.add_nextn_predict_layers(layers)
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv([text["num_key_value_heads"], text["num_global_key_value_heads"]])
    writer.add_key_length(whole)
    writer.add_key_length_swa(head_dim)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_sliding_window(text["sliding_window"])
    writer.add_sliding_window_pattern([kind != "full_attention" for kind in text["layer_types"]])
    writer.add_shared_kv_layers(layers)
    writer.add_rope_dimension_count(whole)
    writer.add_rope_dimension_count_swa(head_dim)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    rotated = whole // 8
    factors = [1.0] * rotated + [1e30] * (whole // 2 - rotated)
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    for name, tensor in load_file(assistant / "model.safetensors").items():
        own = _OUTSIDE_OF_GGUF.get(name)
        if name.startswith("model.layers."):
            _, _, layer, inner = name.split(".", 3)
            own = f"blk.{layer}.{_LAYER_OF_GGUF[inner]}"
        if own is not None:
            writer.add_tensor(f"{own}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_assistant(
    directory: Path, target: Path, *, known: int | None = None, right: bool = False
) -> Path:
    """An assistant for a tiny Gemma 4, of two layers, which knows so many of the tokens of a row
    where that is said. If it is to be `right`, it and the target, which is dense, add nothing to
    the residual stream in their layers."""
    path = target / "model.safetensors"
    values, tensors = json.loads((target / "config.json").read_text()), load_file(path)
    size, vocabulary = values["hidden_size"], values["vocab_size"]
    heads, own, rng = values["num_attention_heads"], 24, np.random.default_rng(19)

    def drawn(*shape: int) -> np.ndarray:
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return (rng.standard_normal(shape) * 2 / np.sqrt(shape[-1])).astype(np.float32)

    if right:
        own = size
        values["final_logit_softcapping"] = None
        (target / "config.json").write_text(json.dumps(values))
    made = {
        "model.embed_tokens.weight": drawn(vocabulary, own),
        "model.norm.weight": drawn(own),
        "pre_projection.weight": drawn(own, 2 * size),
        "post_projection.weight": drawn(size, own),
    }
    kinds = ["sliding_attention", "full_attention"]
    for layer, kind in enumerate(kinds):
        prefix = f"model.layers.{layer}."
        width = values["head_dim" if kind == kinds[0] else "global_head_dim"]
        shapes = {
            "self_attn.q_proj.weight": (heads * width, own),
            "self_attn.q_norm.weight": (width,),
            "self_attn.o_proj.weight": (own, heads * width),
            "mlp.gate_proj.weight": (40, own),
            "mlp.up_proj.weight": (40, own),
            "mlp.down_proj.weight": (own, 40),
            "layer_scalar": (1,),
        }
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes[f"{name}_layernorm.weight"] = (own,)
        made |= {prefix + name: drawn(*shape) for name, shape in shapes.items()}
    if right:
        for each in (tensors, made):
            for name, tensor in each.items():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    tensor[...] = 0
                if name.endswith("layer_scalar"):
                    tensor[...] = 1
        made["pre_projection.weight"] = np.eye(size, 2 * size, dtype=np.float32)
        made["model.embed_tokens.weight"] = tensors["lm_head.weight"].copy()
        made["model.norm.weight"] = tensors["model.norm.weight"].copy()
        save_file(tensors, path)
    if known is not None:
        made["masked_embedding.centroids.weight"] = drawn(vocabulary, own)
        made["masked_embedding.token_ordering"] = rng.permutation(vocabulary)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(made, directory / "model.safetensors")
    text = {
        **values,
        "hidden_size": own,
        "intermediate_size": 40,
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "num_kv_shared_layers": len(kinds),
        "use_double_wide_mlp": False,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": False,
    }
    described = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "text_config": text,
        "backbone_hidden_size": size,
        "use_ordered_embeddings": known is not None,
        "num_centroids": vocabulary,
        "centroid_intermediate_top_k": known or 1,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(described))
    return directory
