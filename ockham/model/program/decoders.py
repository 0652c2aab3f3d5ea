"""Every decoder that Ockham knows, as data: one record each."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import (
    Architecture,
    ExpertRecord,
    all_but_every_nth_layer,
    by_interval,
    by_pattern,
    every_layer,
    layers_without_rope,
    lower_even_layers,
    no_layer,
    rotated_by_interval,
    rotated_by_name,
    rotated_in_windows,
    three_of_four,
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

_VISION_TOWER = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
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
    ignored=_VISION_TOWER,
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
    ignored=_VISION_TOWER,
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
_OLMO3 = replace(
    _OLMO2,
    name="Olmo3ForCausalLM",
    layer_types=True,
    slides=three_of_four,
    unscaled_windows=True,
    defaults={**_OLMO2.defaults, "sliding_window": 4096},
)
_EXAONE4 = replace(
    _OLMO2,
    name="Exaone4ForCausalLM",
    qk_norm="head",
    qkv_bias=False,
    output_bias=False,
    layer_types=True,
    slides=by_pattern,
    rotates=rotated_in_windows,
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "eos_token_id": 2,
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
_GRANITE = Architecture(
    "GraniteForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    embedding_scale="embedding_multiplier",
    attention_scale="attention_multiplier",
    residual_scale="residual_multiplier",
    logits_divisor="logits_scaling",
    rotates=rotated_by_name,
    defaults={
        "position_embedding_type": "rope",
        "max_position_embeddings": 2048,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "eos_token_id": 2,
    },
)
_GRANITE_EXPERTS = ExpertRecord(
    blocks=("block_sparse_moe.",),
    router="router.layer",
    stacked=("input_linear.weight", "output_linear.weight"),
    intermediate="intermediate_size",
    normalise=True,
    optional=True,
    shared_intermediate="shared_expert_intermediate_size",
    shared_gate_up=(".shared_mlp.input_linear",),
    shared_down=".shared_mlp.output_linear",
    shared_gate=None,
)
_GRANITE_MOE = replace(
    _GRANITE,
    name="GraniteMoeForCausalLM",
    keys={"shared_expert_intermediate_size": "shared_intermediate_size"},
    experts=_GRANITE_EXPERTS,
    defaults={
        **_GRANITE.defaults,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 0,
    },
)
_GRANITE_MOE_SHARED = replace(_GRANITE_MOE, name="GraniteMoeSharedForCausalLM")
_GRANITE_MOE_HYBRID = replace(
    _GRANITE_MOE,
    name="GraniteMoeHybridForCausalLM",
    only_layer_types=("attention", "full_attention"),
    intermediate="shared_intermediate_size",
    gate_up=("shared_mlp.input_linear",),
    down="shared_mlp.output_linear",
    defaults={
        **_GRANITE_MOE.defaults,
        "position_embedding_type": None,
        "shared_intermediate_size": 1024,
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
_ERNIE = Architecture(
    "Ernie4_5ForCausalLM",
    neighbours=True,
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    },
)
_ERNIE_MOE = replace(
    _ERNIE,
    name="Ernie4_5_MoeForCausalLM",
    keys={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    experts=ExpertRecord(
        normalise=True,
        correction="moe_statics.e_score_correction_bias",
        layers=by_interval,
        shared_intermediate="moe_intermediate_size",
        shared_count="moe_num_shared_experts",
        shared_gate_up=("shared_experts.gate_proj", "shared_experts.up_proj"),
        shared_down="shared_experts.down_proj",
        shared_gate=None,
    ),
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    unused=("mtp_block.", "mtp_emb_norm.", "mtp_hidden_norm.", "mtp_linear_proj."),
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
_GPT_OSS = Architecture(
    "GptOssForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    sinks="self_attn.sinks",
    clamped_swiglu={"swiglu_limit": 7.0, "swiglu_alpha": 1.702},
    layer_types=True,
    slides=all_but_every_nth_layer,
    experts=ExpertRecord(
        router="router",
        intermediate="intermediate_size",
        normalise=True,
        bias=True,
        interleaved=True,
    ),
    defaults={
        "attention_bias": True,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "sliding_window": 128,
        "sliding_window_pattern": 2,
    },
)

DECODERS: dict[str, Architecture] = {
    record.name: record
    for record in (
        _LLAMA,
        _RECURSIVE,
        _MISTRAL,
        _MINISTRAL,
        _MINISTRAL3,
        _MISTRAL3,
        _QWEN2,
        _QWEN3,
        _QWEN3_VL,
        _GEMMA2,
        _GEMMA3,
        _GEMMA3_MULTIMODAL,
        _PHI3,
        _SMOLLM3,
        _OLMO2,
        _OLMO3,
        _EXAONE4,
        _SEED_OSS,
        _GRANITE,
        _GRANITE_MOE,
        _GRANITE_MOE_SHARED,
        _GRANITE_MOE_HYBRID,
        _MINICPM,
        _HUNYUAN_DENSE,
        _ERNIE,
        _ERNIE_MOE,
        _MIXTRAL,
        _QWEN2_MOE,
        _QWEN3_MOE,
        _OLMOE,
        _GPT_OSS,
    )
}
"""By the name that config.json gives under `architectures`."""
