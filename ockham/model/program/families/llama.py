"""Llama, and what is built like it, from Mistral and Mixtral to Phi-3, BitNet and MiniCPM."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.families.images import VISION_TOWER
from ockham.model.program.record import (
    Architecture,
    ExpertRecord,
    every_layer,
    layers_without_rope,
    rotated_by_interval,
)

_LLAMA = Architecture(
    "LlamaForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    defaults={"max_position_embeddings": 2048, "eos_token_id": 2},
)
_RECURSIVE = replace(_LLAMA, name="RecursiveLlamaForCausalLM", passes="num_recursions")
_MISTRAL = Architecture(
    "MistralForCausalLM",
    slides=every_layer,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "eos_token_id": 2,
    },
)
_MINISTRAL = replace(_MISTRAL, name="MinistralForCausalLM", layer_types=True)
_MINISTRAL3 = replace(
    _MISTRAL,
    name="Ministral3ForCausalLM",
    query_growth="llama_4_scaling_beta",
    defaults={**_MISTRAL.defaults, "max_position_embeddings": 262144, "sliding_window": None},
)
_MISTRAL3 = replace(
    _MINISTRAL3,
    name="Mistral3ForConditionalGeneration",
    prefixes=("language_model.model.", "model.language_model."),
    heads=("language_model.lm_head.weight", "lm_head.weight"),
    text_config="text_config",
    ignored=VISION_TOWER,
)
_PHI3 = Architecture(
    "Phi3ForCausalLM",
    qkv=("self_attn.qkv_proj",),
    gate_up=("mlp.gate_up_proj",),
    slides=every_layer,
    partial_rotary=True,
    rope_aliases={"su": "longrope", "yarn": "longrope"},
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "eos_token_id": 32000,
    },
)
_SMOLLM3 = Architecture(
    "SmolLM3ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    layer_types=True,
    slides=layers_without_rope,
    window_switch="use_sliding_window",
    rotates=rotated_by_interval,
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2_000_000.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
        "eos_token_id": 128001,
    },
)
_SEED_OSS = Architecture(
    "SeedOssForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_out_bias",
    mlp_bias="mlp_bias",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
        "eos_token_id": 2,
    },
)
_MINICPM = replace(
    _LLAMA,
    name="MiniCPMForCausalLM",
    embedding_scale="scale_emb",
    residual_scale="scale_depth",
    residual_scale_by_depth=True,
    logits_divisor="dim_model_base",
    logits_divisor_of_width=True,
    defaults={**_LLAMA.defaults, "scale_emb": 1, "scale_depth": 1.0, "dim_model_base": 1},
)
_HUNYUAN_DENSE = Architecture(
    "HunYuanDenseV1ForCausalLM",
    qk_norm="rotated",
    q_norm="self_attn.query_layernorm",
    k_norm="self_attn.key_layernorm",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    stretched_base="alpha",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 2},
)
_BITNET = Architecture(
    "BitNetForCausalLM",
    attention_inner_norm="self_attn.attn_sub_norm",
    mlp_inner_norm="mlp.ffn_sub_norm",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    defaults={
        "vocab_size": 128256,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 30,
        "num_attention_heads": 20,
        "num_key_value_heads": 5,
        "hidden_act": "relu2",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
)
_MIXTRAL = Architecture(
    "MixtralForCausalLM",
    slides=every_layer,
    experts=ExpertRecord(
        blocks=("block_sparse_moe.", "mlp."),
        gate="w1",
        up="w3",
        down="w2",
        intermediate="intermediate_size",
        normalise=True,
    ),
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "eos_token_id": 2,
    },
)

RECORDS = (
    _LLAMA,
    _RECURSIVE,
    _MISTRAL,
    _MINISTRAL,
    _MINISTRAL3,
    _MISTRAL3,
    _PHI3,
    _SMOLLM3,
    _SEED_OSS,
    _MINICPM,
    _HUNYUAN_DENSE,
    _BITNET,
    _MIXTRAL,
)
