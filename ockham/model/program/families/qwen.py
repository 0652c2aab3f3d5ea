"""Qwen 2 to 3.5, their mixtures and the text parts of models of images."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import (
    Architecture,
    DeltaRecord,
    ExpertRecord,
    every_layer,
    lower_even_layers,
    no_layer,
    upper_layers,
)

_QWEN_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN2 = Architecture(
    "Qwen2ForCausalLM",
    qkv_bias=True,
    layer_types=True,
    slides=upper_layers,
    window_switch="use_sliding_window",
    defaults={"max_position_embeddings": 32768, **_QWEN_WINDOWS},
)
_QWEN3 = Architecture(
    "Qwen3ForCausalLM",
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    layer_types=True,
    slides=upper_layers,
    window_switch="use_sliding_window",
    defaults={"head_dim": 128, "max_position_embeddings": 32768, **_QWEN_WINDOWS},
)
_QWEN3_VL = replace(
    _QWEN3,
    name="Qwen3VLForConditionalGeneration",
    prefixes=("model.language_model.", "language_model.model."),
    heads=("lm_head.weight", "language_model.lm_head.weight"),
    text_config="text_config",
    sections=True,
    slides=no_layer,
    ignored=("model.visual.", "visual."),
)
_QWEN2_VL = replace(
    _QWEN2,
    name="Qwen2VLForConditionalGeneration",
    prefixes=("model.language_model.", "language_model.model.", "model."),
    heads=_QWEN3_VL.heads,
    text_config="text_config",
    sections=True,
    rope_aliases={"mrope": "default"},
    ignored=_QWEN3_VL.ignored,
)
_QWEN2_5_VL = replace(_QWEN2_VL, name="Qwen2_5_VLForConditionalGeneration")
_QWEN_EXPERTS = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}
_QWEN2_MOE = Architecture(
    "Qwen2MoeForCausalLM",
    qkv_bias="qkv_bias",
    layer_types=True,
    slides=lower_even_layers,
    window_switch="use_sliding_window",
    experts=ExpertRecord(shared_intermediate="shared_expert_intermediate_size"),
    defaults={
        "qkv_bias": True,
        "max_position_embeddings": 32768,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        **_QWEN_WINDOWS,
        **_QWEN_EXPERTS,
    },
)
_QWEN3_MOE = Architecture(
    "Qwen3MoeForCausalLM",
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    slides=every_layer,
    window_switch="use_sliding_window",
    experts=ExpertRecord(),
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        **_QWEN_WINDOWS,
        **_QWEN_EXPERTS,
    },
)
_QWEN3_VL_MOE = replace(
    _QWEN3_MOE,
    name="Qwen3VLMoeForConditionalGeneration",
    prefixes=_QWEN3_VL.prefixes,
    heads=_QWEN3_VL.heads,
    text_config="text_config",
    sections=True,
    slides=no_layer,
    ignored=_QWEN3_VL.ignored,
    experts=ExpertRecord(normalise=True, transposed=True),
    defaults={
        **_QWEN3_MOE.defaults,
        "num_key_value_heads": 16,
        "max_position_embeddings": 128000,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
    },
)
_QWEN3_5 = replace(
    _QWEN3,
    name="Qwen3_5ForCausalLM",
    layer_types=False,
    slides=no_layer,
    window_switch=None,
    norm_offset=1.0,
    partial_rotary=True,
    sections=True,
    output_gates=True,
    delta=DeltaRecord(),
    ignored=_QWEN3_VL.ignored,
    unused=("mtp.",),
    defaults={
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
)
_QWEN3_5_MOE = replace(
    _QWEN3_5,
    name="Qwen3_5MoeForCausalLM",
    experts=ExpertRecord(
        normalise=True, shared_intermediate="shared_expert_intermediate_size", layers=every_layer
    ),
    defaults={
        **_QWEN3_5.defaults,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "intermediate_size": 512,
    },
)
_QWEN3_NEXT = replace(
    _QWEN3_5,
    name="Qwen3NextForCausalLM",
    sections=False,
    delta=DeltaRecord(fused=("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba")),
    experts=ExpertRecord(shared_intermediate="shared_expert_intermediate_size"),
    ignored=(),
    defaults={
        **_QWEN3_5.defaults,
        **_QWEN_EXPERTS,
        "norm_topk_prob": True,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
)
_QWEN3_5_MULTIMODAL, _QWEN3_5_MOE_MULTIMODAL = (
    replace(
        record,
        name=record.name.replace("ForCausalLM", "ForConditionalGeneration"),
        prefixes=_QWEN3_VL.prefixes,
        heads=_QWEN3_VL.heads,
        text_config="text_config",
    )
    for record in (_QWEN3_5, _QWEN3_5_MOE)
)

RECORDS = (
    _QWEN2,
    _QWEN3,
    _QWEN3_VL,
    _QWEN2_VL,
    _QWEN2_5_VL,
    _QWEN2_MOE,
    _QWEN3_MOE,
    _QWEN3_VL_MOE,
    _QWEN3_NEXT,
    _QWEN3_5,
    _QWEN3_5_MULTIMODAL,
    _QWEN3_5_MOE,
    _QWEN3_5_MOE_MULTIMODAL,
)
