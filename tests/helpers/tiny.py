"""Tiny random checkpoints for tests of the engine, made without PyTorch so that they are quick."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

LAB = Path(__file__).parents[2] / "ockham" / "model" / "lab"


def tiny_llama(directory: Path, *, seed: int = 0, tokenizer: bool = False, **config: Any) -> Path:
    """A Llama-architecture checkpoint of random fp32 weights; `config` changes its config.json.

    With `tokenizer=True` it has the lab model's tokenizer, and its vocabulary.
    """
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 4096 if tokenizer else 97,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": 1,
        "torch_dtype": "float32",
        **config,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    rng = np.random.default_rng(seed)
    width, inner = values["hidden_size"], values["intermediate_size"]
    heads = values["num_attention_heads"] * values["head_dim"]
    kv = values["num_key_value_heads"] * values["head_dim"]

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        spread = scale / np.sqrt(columns)
        return (rng.standard_normal((rows, columns)) * spread).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(values["vocab_size"], width, 4.0),
        "model.norm.weight": np.ones(width, np.float32),
        "lm_head.weight": matrix(values["vocab_size"], width, 4.0),
    }
    for layer in range(values["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": matrix(heads, width, 2.0),
            prefix + "self_attn.k_proj.weight": matrix(kv, width, 2.0),
            prefix + "self_attn.v_proj.weight": matrix(kv, width),
            prefix + "self_attn.o_proj.weight": matrix(width, heads),
            prefix + "input_layernorm.weight": np.ones(width, np.float32),
            prefix + "post_attention_layernorm.weight": np.ones(width, np.float32),
        }
        experts = values.get("num_local_experts", 0)
        block = prefix + "block_sparse_moe."
        blocks = [(prefix + "mlp.", "gate_proj", "up_proj", "down_proj")]
        if experts:
            tensors[block + "gate.weight"] = matrix(experts, width, 2.0)
            blocks = [(f"{block}experts.{e}.", "w1", "w3", "w2") for e in range(experts)]
        for start, gate, up, down in blocks:
            tensors[f"{start}{gate}.weight"] = matrix(inner, width)
            tensors[f"{start}{up}.weight"] = matrix(inner, width)
            tensors[f"{start}{down}.weight"] = matrix(width, inner)
    save_file(tensors, directory / "model.safetensors")
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(LAB / name, directory / name)
    return directory


def tiny_mistral(directory: Path, *, window: int = 12, **config: Any) -> Path:
    """The same with a sliding window in every layer."""
    return tiny_llama(
        directory,
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=window,
        **config,
    )


def tiny_alternating(directory: Path, *, window: int = 12, **config: Any) -> Path:
    """A SmolLM3 of three layers, the second of which has a sliding window."""
    return tiny_llama(
        directory,
        architectures=["SmolLM3ForCausalLM"],
        model_type="smollm3",
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=window,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        **config,
    )


def tiny_recursive(directory: Path, *, passes: int = 3, seed: int = 0, **config: Any) -> Path:
    """A model of a first layer, two that run `passes` times, and a last one. Its routers send about
    half of the rows on."""
    tiny_llama(directory, seed=seed, **{**config, "num_hidden_layers": 4})
    values = json.loads((directory / "config.json").read_text())
    values |= {
        "architectures": ["RecursiveLlamaForCausalLM"],
        "model_type": "recursive_llama",
        "num_recursions": passes,
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(seed + 1)
    for number in range(passes - 1):
        name, size = f"model.routers.{number}", values["hidden_size"]
        tensors[f"{name}.weight"] = rng.standard_normal(size).astype(np.float32)
        tensors[f"{name}.bias"] = np.array([0.5], np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_lfm2(
    directory: Path,
    *,
    kinds: tuple[str, ...] = ("conv", "full_attention", "conv"),
    length: int = 3,
    **config: Any,
) -> Path:
    """A model with short convolutions over `length` tokens in the place of some attention."""
    tiny_llama(directory, **{**config, "num_hidden_layers": len(kinds)})
    values = json.loads((directory / "config.json").read_text())
    values |= {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "layer_types": list(kinds),
        "conv_L_cache": length,
        "block_auto_adjust_ff_dim": False,
        "norm_eps": values.pop("rms_norm_eps"),
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(11)
    size, renamed = values["hidden_size"], {}
    for name, tensor in tensors.items():
        for theirs, ours in _LFM2_NAMES.items():
            name = name.replace(theirs, ours)
        if ".self_attn." in name and kinds[int(name.split(".")[2])] == "conv":
            continue
        renamed[name] = tensor
    for layer, kind in enumerate(kinds):
        prefix = f"model.layers.{layer}."
        if kind == "conv":
            spread = size**-0.5
            shapes = {"in_proj": (3 * size, size), "out_proj": (size, size)}
            for name, shape in shapes.items():
                drawn = rng.standard_normal(shape) * spread * 2.0
                renamed[f"{prefix}conv.{name}.weight"] = drawn.astype(np.float32)
            drawn = rng.standard_normal((size, 1, length))
            renamed[f"{prefix}conv.conv.weight"] = drawn.astype(np.float32)
        else:
            for name in ("q_layernorm", "k_layernorm"):
                weight = rng.uniform(0.5, 1.5, values["head_dim"])
                renamed[f"{prefix}self_attn.{name}.weight"] = weight.astype(np.float32)
    save_file(renamed, directory / "model.safetensors")
    return directory


def tiny_qwen3_5(
    directory: Path,
    *,
    kinds: tuple[str, ...] = ("linear_attention", "full_attention", "linear_attention"),
    key_heads: int = 2,
    value_heads: int = 4,
    key_dim: int = 16,
    value_dim: int = 24,
    length: int = 4,
    **config: Any,
) -> Path:
    """A model with gated delta rules in the place of some attention, and gates of the rest."""
    tiny_llama(directory, **{**config, "num_hidden_layers": len(kinds)})
    values = json.loads((directory / "config.json").read_text())
    values |= {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "layer_types": list(kinds),
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": value_dim,
        "linear_conv_kernel_dim": length,
        "partial_rotary_factor": 0.5,
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(13)
    size, wide = values["hidden_size"], value_heads * value_dim
    channels = 2 * key_heads * key_dim + wide

    def drawn(*shape: int, scale: float = 1.0) -> np.ndarray:
        spread = scale / np.sqrt(shape[-1])
        return (rng.standard_normal(shape) * spread).astype(np.float32)

    made = {
        name: np.zeros_like(tensor) if name.endswith("norm.weight") else tensor
        for name, tensor in tensors.items()
        if ".self_attn." not in name or kinds[int(name.split(".")[2])] == "full_attention"
    }
    for layer, kind in enumerate(kinds):
        prefix = f"model.layers.{layer}."
        if kind == "full_attention":
            query = prefix + "self_attn.q_proj.weight"
            made[query] = drawn(2 * len(made[query]), size, scale=2.0)
            for name in ("q_norm", "k_norm"):
                weight = rng.uniform(-0.5, 0.5, values["head_dim"])
                made[f"{prefix}self_attn.{name}.weight"] = weight.astype(np.float32)
            continue
        prefix += "linear_attn."
        made |= {
            prefix + "in_proj_qkv.weight": drawn(channels, size, scale=2.0),
            prefix + "in_proj_z.weight": drawn(wide, size),
            prefix + "in_proj_b.weight": drawn(value_heads, size),
            prefix + "in_proj_a.weight": drawn(value_heads, size),
            prefix + "conv1d.weight": drawn(channels, 1, length, scale=2.0),
            prefix + "A_log": rng.uniform(-3, 1, value_heads).astype(np.float32),
            prefix + "dt_bias": rng.uniform(-1, 1, value_heads).astype(np.float32),
            prefix + "norm.weight": rng.uniform(0.5, 1.5, value_dim).astype(np.float32),
            prefix + "out_proj.weight": drawn(size, wide),
        }
    save_file(made, directory / "model.safetensors")
    return directory


def tiny_gemma4(
    directory: Path,
    *,
    kinds: tuple[str, ...] = ("sliding_attention", "full_attention") * 2,
    window: int = 12,
    experts: int = 0,
    sharing: int = 0,
    inputs: int = 0,
    **config: Any,
) -> Path:
    """A Gemma 4: dense, with `experts` beside the dense part, or with layers that read the keys of
    others (`sharing`, which are twice as wide) and have `inputs` of their own."""
    tiny_llama(directory, **{**config, "num_hidden_layers": len(kinds)})
    values = json.loads((directory / "config.json").read_text())
    size, inner, head = (
        values[f"{key}"] for key in ("hidden_size", "intermediate_size", "head_dim")
    )
    heads, vocabulary, count = values["num_attention_heads"], values["vocab_size"], len(kinds)
    kv_heads = values["num_key_value_heads"]
    values |= {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "layer_types": list(kinds),
        "sliding_window": window,
        "global_head_dim": 2 * head,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": not sharing,
        "num_kv_shared_layers": sharing,
        "use_double_wide_mlp": bool(sharing),
        "hidden_size_per_layer_input": inputs,
        "vocab_size_per_layer_input": vocabulary,
        "enable_moe_block": bool(experts),
        "num_experts": experts or None,
        "top_k_experts": 2,
        "moe_intermediate_size": inner,
        "final_logit_softcapping": 20.0,
        "tie_word_embeddings": False,
    }
    values["hidden_activation"] = values.pop("hidden_act").replace("silu", "gelu_pytorch_tanh")
    del values["rope_theta"]
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(17)

    def drawn(*shape: int, scale: float = 1.0) -> np.ndarray:
        spread = scale / np.sqrt(shape[-1])
        return (rng.standard_normal(shape) * spread).astype(np.float32)

    def norm(width: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, width).astype(np.float32)

    made = {name: each for name, each in tensors.items() if ".layers." not in name}
    if inputs:
        made |= {
            "model.embed_tokens_per_layer.weight": drawn(vocabulary, count * inputs, scale=4.0),
            "model.per_layer_model_projection.weight": drawn(count * inputs, size),
            "model.per_layer_projection_norm.weight": norm(inputs),
        }
    for layer, kind in enumerate(kinds):
        whole, own, prefix = (
            kind == "full_attention",
            layer < count - sharing,
            f"model.layers.{layer}.",
        )
        width = head * (1 + whole)
        kv = (1 if whole and not sharing else kv_heads) * width
        wide = inner if own else 2 * inner
        layer_made = {
            "self_attn.q_proj.weight": drawn(heads * width, size),
            "self_attn.q_norm.weight": norm(width),
            "self_attn.o_proj.weight": drawn(size, heads * width),
            "mlp.gate_proj.weight": drawn(wide, size),
            "mlp.up_proj.weight": drawn(wide, size),
            "mlp.down_proj.weight": drawn(size, wide),
            "layer_scalar": rng.uniform(0.5, 1.5, 1).astype(np.float32),
        }
        names = ["input_layernorm", "post_attention_layernorm"]
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        # Published checkpoints hold keys and values of layers that read others' too.
        layer_made["self_attn.k_proj.weight"] = drawn(kv, size)
        layer_made["self_attn.k_norm.weight"] = norm(width)
        if sharing or not whole:
            layer_made["self_attn.v_proj.weight"] = drawn(kv, size)
        if experts:
            names += ["pre_feedforward_layernorm_2", "post_feedforward_layernorm_1"]
            names += ["post_feedforward_layernorm_2"]
            layer_made |= {
                "router.proj.weight": drawn(experts, size, scale=4.0),
                "router.scale": norm(size) * 5,
                "router.per_expert_scale": norm(experts),
                "experts.gate_up_proj": drawn(experts, 2 * inner, size),
                "experts.down_proj": drawn(experts, size, inner),
            }
        if inputs:
            names.append("post_per_layer_input_norm")
            layer_made["per_layer_input_gate.weight"] = drawn(inputs, size)
            layer_made["per_layer_projection.weight"] = drawn(size, inputs)
        layer_made |= {f"{name}.weight": norm(size) for name in names}
        made |= {prefix + name: each for name, each in layer_made.items()}
    save_file(made, directory / "model.safetensors")
    return directory


_LFM2_NAMES = {
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "model.norm.": "model.embedding_norm.",
}


def tiny_sliced(directory: Path, *, widths: tuple[int, ...] = (32, 64), **config: Any) -> Path:
    """The same with matrices on the residual stream beside each branch, and feed-forwards of
    unequal widths: what `slicegpt` and `heapr` make."""
    tiny_llama(directory, **{**config, "intermediate_size": max(widths)})
    values = json.loads((directory / "config.json").read_text())
    values |= {"residual_shortcuts": True, "intermediate_size": list(widths)}
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(7)
    size = values["hidden_size"]
    for layer, width in enumerate(widths):
        prefix = f"model.layers.{layer}."
        for branch in ("self_attn", "mlp"):
            turned, _ = np.linalg.qr(rng.standard_normal((size, size)))
            tensors[f"{prefix}{branch}.shortcut.weight"] = turned.astype(np.float32)
        for name in ("gate_proj", "up_proj"):
            key = f"{prefix}mlp.{name}.weight"
            tensors[key] = np.ascontiguousarray(tensors[key][:width])
        key = f"{prefix}mlp.down_proj.weight"
        tensors[key] = np.ascontiguousarray(tensors[key][:, :width])
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_without_attention(
    directory: Path, *, without: tuple[int, ...] = (1, 2), layers: int = 4, **config: Any
) -> Path:
    """A Llama some of whose layers have lost their attention, and keep no state."""
    tiny_llama(directory, num_hidden_layers=layers, **config)
    values = json.loads((directory / "config.json").read_text())
    values["layers_without_attention"] = list(without)
    (directory / "config.json").write_text(json.dumps(values))
    tensors = load_file(directory / "model.safetensors")
    for name in [*tensors]:
        if any(f"layers.{layer}.self_attn." in name for layer in without):
            del tensors[name]
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_mixtral(directory: Path, *, experts: int = 5, **config: Any) -> Path:
    """The same with a mixture of experts in every layer, of which each row takes two."""
    return tiny_llama(
        directory,
        architectures=["MixtralForCausalLM"],
        model_type="mixtral",
        num_local_experts=experts,
        num_experts_per_tok=2,
        **config,
    )


def tiny_ministral3(directory: Path, *, period: int = 32, **config: Any) -> Path:
    """A model whose queries grow with every `period` positions."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "llama_4_scaling_beta": 0.3}
    return tiny_llama(
        directory,
        architectures=["Ministral3ForCausalLM"],
        model_type="ministral3",
        rope_parameters={**rope, "original_max_position_embeddings": period},
        **config,
    )


def tiny_hunyuan(directory: Path, **config: Any) -> Path:
    """A model whose queries and keys are normed after their rotation."""
    names = {"architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense"}
    tiny_llama(directory, **names, **config)
    values = json.loads((directory / "config.json").read_text())
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(9)
    for layer in range(values["num_hidden_layers"]):
        for name in ("query", "key"):
            norm = 1 + 0.3 * rng.standard_normal(values["head_dim"])
            key = f"model.layers.{layer}.self_attn.{name}_layernorm.weight"
            tensors[key] = norm.astype(np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_bitnet(directory: Path, **config: Any) -> Path:
    """A model of ternary weights, packed as they are published, with norms before its last
    products."""
    names = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2"}
    quantised = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    tiny_llama(directory, **names, quantization_config=quantised, **config)
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(10)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name]
        mean = np.abs(weight).mean()
        codes = (np.clip(np.rint(weight / mean), -1, 1) + 1).astype(np.uint8)
        quarters = codes.reshape(4, -1, codes.shape[1])
        tensors[name] = np.bitwise_or.reduce(
            quarters << np.array([0, 2, 4, 6], np.uint8)[:, None, None], axis=0
        )
        tensors[f"{name}_scale"] = np.array([mean], np.float32)
        own = {"o_proj.weight": "attn_sub_norm.weight", "down_proj.weight": "ffn_sub_norm.weight"}
        last = name.rpartition("_proj.")[0].rpartition(".")[2] + "_proj.weight"
        if last in own:
            norm = 1 + 0.3 * rng.standard_normal(weight.shape[1])
            tensors[name.replace(last, own[last])] = norm.astype(np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_matmul_free(
    directory: Path, *, bounded: bool = True, seed: int = 0, **config: Any
) -> Path:
    """A model of gated linear recurrences alone, whose matrices are stored in floats and meant
    ternary, each behind a norm of its own. Other keys of `config` than its own are left out."""
    values: dict[str, Any] = {
        "architectures": ["HGRNBitForCausalLM"],
        "model_type": "hgrn_bit",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_heads": 1,
        "expand_ratio": 1,
        "use_short_conv": False,
        "use_lower_bound": bounded,
        "hidden_act": "swish",
        "vocab_size": 97,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    values |= {key: value for key, value in config.items() if key in values}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    rng, layers = np.random.default_rng(seed), values["num_hidden_layers"]
    size, inner, rows = values["hidden_size"], values["intermediate_size"], values["vocab_size"]

    def drawn(*shape: int, scale: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {
        "model.embeddings.weight": drawn(rows, size),
        "model.norm.weight": drawn(size, scale=0.3, mean=1.0),
    }
    if bounded:
        tensors["model.lower_bounds"] = drawn(layers, size)
    matrices = {"lm_head": (rows, size)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for norm in ("attn_norm", "attn.g_norm", "mlp_norm"):
            tensors[f"{prefix}{norm}.weight"] = drawn(size, scale=0.3, mean=1.0)
        matrices |= {f"{prefix}attn.{name}_proj": (size, size) for name in "ifgo"}
        matrices[f"{prefix}mlp.gate_proj"] = (2 * inner, size)
        matrices[f"{prefix}mlp.down_proj"] = (size, inner)
    for name, (outputs, inputs) in matrices.items():
        tensors[f"{name}.weight"] = drawn(outputs, inputs, scale=2.0 * inputs**-0.5)
        tensors[f"{name}.norm.weight"] = drawn(inputs, scale=0.3, mean=1.0)
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_latent(
    directory: Path,
    *,
    rank: int = 112,
    rotated: int = 16,
    plain: int = 32,
    value: int = 48,
    query_rank: int | None = 40,
    experts: int = 8,
    **config: Any,
) -> Path:
    """DeepSeek-V3: latent attention, and but for the first layer experts in groups."""
    tiny_llama(directory, **config)
    values = json.loads((directory / "config.json").read_text())
    del values["head_dim"]
    inner = values["intermediate_size"] // 4
    values |= {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": values["num_attention_heads"],
        "kv_lora_rank": rank,
        "q_lora_rank": query_rank,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": plain,
        "v_head_dim": value,
        "first_k_dense_replace": 1,
        "n_routed_experts": experts,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": inner,
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(17)
    width, heads = values["hidden_size"], values["num_attention_heads"]

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float32)

    found = {name: value for name, value in tensors.items() if "_proj" not in name}
    for layer in range(values["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention, block = prefix + "self_attn.", prefix + "mlp."
        queries = heads * (plain + rotated)
        shapes = {"q_proj": (queries, width)}
        if query_rank:
            shapes = {"q_a_proj": (query_rank, width), "q_b_proj": (queries, query_rank)}
            found[f"{attention}q_a_layernorm.weight"] = np.ones(query_rank, np.float32)
        shapes |= {
            "kv_a_proj_with_mqa": (rank + rotated, width),
            "kv_b_proj": (heads * (plain + value), rank),
            "o_proj": (width, heads * value),
        }
        found[f"{attention}kv_a_layernorm.weight"] = np.ones(rank, np.float32)
        found |= {f"{attention}{name}.weight": drawn(*shape) for name, shape in shapes.items()}
        blocks = {block: values["intermediate_size"]}
        if layer:
            blocks = {f"{block}experts.{n}.": inner for n in range(experts)}
            blocks[f"{block}shared_experts."] = inner
            found[f"{block}gate.weight"] = 2 * drawn(experts, width)
            found[f"{block}gate.e_score_correction_bias"] = 0.2 * drawn(experts)
        for name, wide in blocks.items():
            found[f"{name}gate_proj.weight"] = drawn(wide, width)
            found[f"{name}up_proj.weight"] = drawn(wide, width)
            found[f"{name}down_proj.weight"] = drawn(width, wide)
    save_file(found, directory / "model.safetensors")
    return directory


def tiny_ernie_moe(directory: Path, *, experts: int = 6, **config: Any) -> Path:
    """A mixture whose choice of experts is corrected, with a shared expert, in all layers but the
    first."""
    tiny_mixtral(directory, experts=experts, **config)
    values = json.loads((directory / "config.json").read_text())
    width, inner = values["hidden_size"], values["intermediate_size"]
    values |= {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "moe_num_experts": experts,
        "moe_k": 2,
        "moe_intermediate_size": inner,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(9)
    renamed = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    found: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        parts = [renamed.get(part, part) for part in name.split(".")]
        if ".layers.0." not in name or "block_sparse_moe" not in name:
            found[".".join(parts)] = value
        elif ".experts.0." in name:
            found[f"model.layers.0.mlp.{parts[-2]}.weight"] = value
    for layer in range(1, values["num_hidden_layers"]):
        block = f"model.layers.{layer}.mlp."
        correction = 0.2 * rng.standard_normal((1, experts))
        found[f"{block}moe_statics.e_score_correction_bias"] = correction.astype(np.float32)
        shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        for name, shape in shapes.items():
            matrix = rng.standard_normal(shape) / np.sqrt(shape[1])
            found[f"{block}shared_experts.{name}_proj.weight"] = matrix.astype(np.float32)
    save_file(found, directory / "model.safetensors")
    return directory


def tiny_unequal(directory: Path, *, step: int = 32, **config: Any) -> Path:
    """A mixture whose experts have unequal widths, and with a matrix on the residual stream."""
    tiny_mixtral(directory, **config)
    values = json.loads((directory / "config.json").read_text())
    widths = [
        [step * (1 + (layer + e) % (values["intermediate_size"] // step)) for e in range(5)]
        for layer in range(values["num_hidden_layers"])
    ]
    values |= {"residual_shortcuts": True, "expert_widths": widths}
    (directory / "config.json").write_text(json.dumps(values))
    tensors, size = load_file(directory / "model.safetensors"), values["hidden_size"]
    turned, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((size, size)))
    for layer, own in enumerate(widths):
        prefix = f"model.layers.{layer}."
        for branch in ("self_attn", "block_sparse_moe"):
            tensors[f"{prefix}{branch}.shortcut.weight"] = turned.astype(np.float32)
        for expert, width in enumerate(own):
            start = f"{prefix}block_sparse_moe.experts.{expert}."
            for name in ("w1", "w3"):
                key = f"{start}{name}.weight"
                tensors[key] = np.ascontiguousarray(tensors[key][:width])
            key = f"{start}w2.weight"
            tensors[key] = np.ascontiguousarray(tensors[key][:, :width])
    save_file(tensors, directory / "model.safetensors")
    return directory


def tiny_granite_hybrid(
    directory: Path,
    *,
    kinds: tuple[str, ...] = ("mamba", "attention", "mamba"),
    groups: int = 2,
    heads: int = 4,
    state_dim: int = 12,
    head_dim: int = 16,
    length: int = 4,
    **config: Any,
) -> Path:
    """A model with state spaces in the place of some attention."""
    tiny_llama(directory, **{**config, "num_hidden_layers": len(kinds)})
    values = json.loads((directory / "config.json").read_text())
    values |= {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "layer_types": list(kinds),
        "num_local_experts": 0,
        "shared_intermediate_size": values["intermediate_size"],
        "position_embedding_type": "nope",
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": values["head_dim"] ** -0.5,
        "logits_scaling": 1.0,
        "mamba_n_groups": groups,
        "mamba_n_heads": heads,
        "mamba_d_state": state_dim,
        "mamba_d_head": head_dim,
        "mamba_d_conv": length,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(17)
    sizes = values["hidden_size"], groups, heads, state_dim, head_dim, length
    made = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    for layer, kind in enumerate(kinds):
        prefix = f"model.layers.{layer}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        gate_up = [own.pop(f"mlp.{name}_proj.weight") for name in ("gate", "up")]
        made[prefix + "shared_mlp.input_linear.weight"] = np.concatenate(gate_up)
        made[prefix + "shared_mlp.output_linear.weight"] = own.pop("mlp.down_proj.weight")
        made |= {
            prefix + name: tensor
            for name, tensor in own.items()
            if kind == "attention" or not name.startswith("self_attn.")
        }
        if kind != "attention":
            made |= _state_space(rng, f"{prefix}mamba.", *sizes)
    save_file(made, directory / "model.safetensors")
    return directory


def tiny_falcon_h1(
    directory: Path,
    *,
    groups: int = 2,
    heads: int = 4,
    state_dim: int = 12,
    head_dim: int = 16,
    length: int = 4,
    **config: Any,
) -> Path:
    """A model with attention and a state space side by side, in each of three layers."""
    tiny_llama(directory, **{"num_hidden_layers": 3, **config})
    values = json.loads((directory / "config.json").read_text())
    values |= {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "mamba_d_ssm": heads * head_dim,
        "mamba_n_groups": groups,
        "mamba_n_heads": heads,
        "mamba_d_state": state_dim,
        "mamba_d_head": head_dim,
        "mamba_d_conv": length,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "attention_in_multiplier": 0.9,
        "attention_out_multiplier": 0.8,
        "key_multiplier": 0.7,
        "embedding_multiplier": 2.0,
        "mlp_multipliers": [0.9, 0.7],
        "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.8,
        "ssm_multipliers": [0.7, 1.4, 0.6, 0.8, 1.7],
    }
    (directory / "config.json").write_text(json.dumps(values))
    tensors, rng = load_file(directory / "model.safetensors"), np.random.default_rng(19)
    renamed = {
        ".mlp.": ".feed_forward.",
        "post_attention_layernorm": "pre_ff_layernorm",
        "model.norm.": "model.final_layernorm.",
    }
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    sizes = values["hidden_size"], groups, heads, state_dim, head_dim, length
    for layer in range(values["num_hidden_layers"]):
        tensors |= _state_space(rng, f"model.layers.{layer}.mamba.", *sizes)
    save_file(tensors, directory / "model.safetensors")
    return directory


def _state_space(
    rng: np.random.Generator,
    prefix: str,
    size: int,
    groups: int,
    heads: int,
    state_dim: int,
    head_dim: int,
    length: int,
) -> dict[str, np.ndarray]:
    """The tensors of a layer of Mamba 2."""
    wide = heads * head_dim
    channels = 2 * groups * state_dim + wide

    def drawn(*shape: int, scale: float = 1.0) -> np.ndarray:
        spread = scale / np.sqrt(shape[-1])
        return (rng.standard_normal(shape) * spread).astype(np.float32)

    return {
        prefix + "in_proj.weight": drawn(wide + channels + heads, size, scale=2.0),
        prefix + "conv1d.weight": drawn(channels, 1, length, scale=2.0),
        prefix + "conv1d.bias": drawn(channels),
        prefix + "A_log": rng.uniform(-3, 1, heads).astype(np.float32),
        prefix + "dt_bias": rng.uniform(-1, 1, heads).astype(np.float32),
        prefix + "D": rng.uniform(0.5, 1.5, heads).astype(np.float32),
        prefix + "norm.weight": rng.uniform(0.5, 1.5, wide).astype(np.float32),
        prefix + "out_proj.weight": drawn(size, wide),
    }


def tiny_based(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """A model of the published layout of Based: a short convolution, linear attention and attention
    in a window. Other keys of `config` than its own are left out."""
    mixers = "based.models.mixers."
    values: dict[str, Any] = {
        "architectures": ["GPTLMHeadModel"],
        "vocab_size": 97,
        "pad_vocab_size_multiple": 1,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 128,
        "n_positions": 0,
        "mixer": {"_target_": f"{mixers}convolution.BaseConv", "l_max": 512, "expand_proj": 4},
        "alt_mixer": {
            "_target_": f"{mixers}linear_attention.LinearAttention",
            "feature_map": {"_target_": f"{mixers}linear_attention.TaylorExp", "input_dim": 4},
            "feature_dim": 4,
            "num_heads": 4,
            "l_max": 512,
        },
        "alt_mixer_2": {"_target_": f"{mixers}slide_attention.SlidingAttention", "window_size": 22},
        "alt_mixer_layers": [1],
        "alt_mixer_2_layers": [2],
        "activation_function": "swiglu",
        "rms_norm": True,
        "rotary_emb_fraction": 1,
        "qkv_proj_bias": False,
        "out_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    values |= {key: value for key, value in config.items() if key in values}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    rng, size = np.random.default_rng(seed), values["n_embd"]

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def near_one(length: int) -> np.ndarray:
        return (1 + 0.3 * rng.standard_normal(length)).astype(np.float32)

    rows = -(-values["vocab_size"] // values["pad_vocab_size_multiple"])
    rows *= values["pad_vocab_size_multiple"]
    tensors = {
        "transformer.embeddings.word_embeddings.weight": drawn(rows, size) * size**0.5,
        "transformer.ln_f.weight": near_one(size),
    }
    linear = values["alt_mixer"]
    keys, width = linear["num_heads"] * linear["feature_dim"], 2 * size
    inner = -(-values["n_inner"] // 256) * 256
    for layer in range(values["n_layer"]):
        prefix = f"transformer.layers.{layer}."
        tensors |= {
            f"{prefix}norm1.weight": near_one(size),
            f"{prefix}norm2.weight": near_one(size),
            f"{prefix}mlp.fc1.weight": drawn(2 * inner, size),
            f"{prefix}mlp.fc2.weight": drawn(size, inner),
        }
        prefix += "mixer."
        if layer in values["alt_mixer_2_layers"]:
            own = {"Wqkv": drawn(3 * size, size), "out_proj": drawn(size, size)}
        elif layer in values["alt_mixer_layers"]:
            own = {f"proj_{name}": drawn(keys, size) * 2 for name in "qk"}
            own |= {"proj_v": drawn(size, size), "out_proj": drawn(size, size)}
        else:
            own = {"in_proj": drawn(2 * width, size), "out_proj": drawn(size, width)}
            own["conv.conv"] = drawn(width, 1, 3) * 3
            tensors |= {f"{prefix}in_proj.bias": drawn(2 * width)}
            tensors |= {f"{prefix}out_proj.bias": drawn(size)}
        tensors |= {f"{prefix}{name}.weight": value for name, value in own.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory
