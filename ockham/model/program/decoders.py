"""Every decoder that Ockham knows, as data: one record each."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import (
    Architecture,
    ExpertRecord,
    all_but_every_nth_layer,
    every_layer,
    layers_without_rope,
    lower_even_layers,
    rotated_by_interval,
    upper_layers,
)

_QWEN_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "norm_offset": 1.0,
}
_GEMMA_DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "eos_token_id": 1,
}
_GEMMA3_DEFAULTS = {
    **_GEMMA_DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}

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
_GEMMA2 = Architecture(
    "Gemma2ForCausalLM",
    **_GEMMA_NORMS,  # type: ignore[arg-type]
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    activation="hidden_activation",
    embedding_scale="hidden_size",
    embedding_scale_root=True,
    attention_scale="query_pre_attn_scalar",
    attention_scale_root=True,
    attention_softcap="attn_logit_softcapping",
    final_softcap="final_logit_softcapping",
    layer_types=True,
    slides=all_but_every_nth_layer,
    defaults=_GEMMA_DEFAULTS,
)
_GEMMA3 = Architecture(
    "Gemma3ForCausalLM",
    **_GEMMA_NORMS,  # type: ignore[arg-type]
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    activation="hidden_activation",
    embedding_scale="hidden_size",
    embedding_scale_root=True,
    attention_scale="query_pre_attn_scalar",
    attention_scale_root=True,
    final_softcap="final_logit_softcapping",
    layer_types=True,
    slides=all_but_every_nth_layer,
    local_theta="rope_local_base_freq",
    defaults=_GEMMA3_DEFAULTS,
)
_GEMMA3_MULTIMODAL = Architecture(
    "Gemma3ForConditionalGeneration",
    prefixes=("language_model.model.", "model.language_model."),
    heads=("language_model.lm_head.weight", "lm_head.weight"),
    text_config="text_config",
    **_GEMMA_NORMS,  # type: ignore[arg-type]
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    activation="hidden_activation",
    embedding_scale="hidden_size",
    embedding_scale_root=True,
    attention_scale="query_pre_attn_scalar",
    attention_scale_root=True,
    final_softcap="final_logit_softcapping",
    layer_types=True,
    slides=all_but_every_nth_layer,
    local_theta="rope_local_base_freq",
    defaults=_GEMMA3_DEFAULTS,
    ignored=(
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
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
_OLMO2 = Architecture(
    "Olmo2ForCausalLM",
    attention_norm=None,
    attention_post_norm="post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="post_feedforward_layernorm",
    qk_norm="whole",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279},
)
_GRANITE = Architecture(
    "GraniteForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    embedding_scale="embedding_multiplier",
    attention_scale="attention_multiplier",
    residual_scale="residual_multiplier",
    logits_divisor="logits_scaling",
    defaults={
        "max_position_embeddings": 2048,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "eos_token_id": 2,
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
_OLMOE = Architecture(
    "OlmoeForCausalLM",
    qk_norm="whole",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    experts=ExpertRecord(intermediate="intermediate_size"),
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "eos_token_id": 50279,
    },
)

DECODERS: dict[str, Architecture] = {
    record.name: record
    for record in (
        _LLAMA,
        _RECURSIVE,
        _MISTRAL,
        _QWEN2,
        _QWEN3,
        _GEMMA2,
        _GEMMA3,
        _GEMMA3_MULTIMODAL,
        _PHI3,
        _SMOLLM3,
        _OLMO2,
        _GRANITE,
        _MIXTRAL,
        _QWEN2_MOE,
        _QWEN3_MOE,
        _OLMOE,
    )
}
"""By the name that config.json gives under `architectures`."""
