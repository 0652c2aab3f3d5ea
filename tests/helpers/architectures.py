"""A tiny configuration or several of every architecture, for transformers to make."""

from __future__ import annotations

from tests.helpers.oracle import Case, longrope

SHORT, LONG = longrope(0, 3)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
MINISTRAL3 = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.3}
ODD_WHOLE = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 6}
"""No multiples of 16, as some case of most architectures has them. All heads together are as
wide as the model."""
ODD = {**ODD_WHOLE, "head_dim": 12}
PATTERN = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
SECTIONS = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [4, 2, 2],
    "mrope_interleaved": True,
}
MROPE = {"type": "mrope", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.5,
}
NEMOTRON = {
    "head_dim": 16,
    "mlp_hidden_act": "relu2",
    "ssm_state_size": 12,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "conv_kernel": 4,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
}
FALCON_H1 = {
    "num_hidden_layers": 3,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.6,
    "key_multiplier": 0.7,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.5,
    "mlp_multipliers": [0.6, 1.3],
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.9,
    "ssm_multipliers": [0.7, 1.4, 0.6, 0.8, 1.7],
}
ERNIE_MOE = {
    "moe_intermediate_size": 24,
    "moe_num_experts": 6,
    "moe_k": 2,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 2,
    "moe_layer_interval": 1,
    "head_dim": 16,
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": PATTERN,
    "sliding_window": 7,
    "final_logit_softcapping": 6.0,
    "vocab_size_per_layer_input": 101,
    "hidden_size_per_layer_input": 0,
}
"""Heads of two sizes, as in all of its models."""
GEMMA4_DENSE = {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
GEMMA4_12B = {key: each for key, each in GEMMA4_DENSE.items() if "layer_input" not in key}
GEMMA4_EXPERTS = {
    "enable_moe_block": True,
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "top_k_experts": 3,
}
GEMMA4_E = {
    "num_hidden_layers": 7,
    "layer_types": [*PATTERN, "sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}

LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.5,
}

CASES = {
    "llama2": Case("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama-tied-biased": Case(
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, **ODD},
    ),
    "llama3-rope": Case("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": Case(
        "Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}
    ),
    "llama-yarn": Case(
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-dynamic-ntk": Case(
        "Llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        },
        max_model_len=32,
        longest=31,
    ),
    "mistral": Case("Mistral", {"sliding_window": 11, "head_dim": 16}),
    "mistral-without-window": Case("Mistral", {**ODD, "sliding_window": None}),
    "ministral": Case("Ministral", {**ODD, "sliding_window": 9, "layer_types": PATTERN}),
    "ministral3": Case("Ministral3", {**ODD, "rope_parameters": MINISTRAL3}),
    "mistral3": Case(
        "Mistral3",
        {"head_dim": 16, "rope_parameters": MINISTRAL3},
        model="Mistral3ForConditionalGeneration",
        text="Ministral3",
        vision="PixtralVision",
        of_vision={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    ),
    "mistral3-tied": Case(
        "Mistral3",
        {"rope_parameters": MINISTRAL3, "tie_word_embeddings": True},
        model="Mistral3ForConditionalGeneration",
        text="Ministral3",
        vision="PixtralVision",
        of_vision={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    ),
    "qwen2": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-upper-layers-slide": Case(
        "Qwen2", {**ODD, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    ),
    "qwen3": Case("Qwen3", {**ODD, "attention_bias": True}),
    "qwen3-vl": Case(
        "Qwen3VL",
        {"head_dim": 16, "rope_parameters": SECTIONS},
        model="Qwen3VLForConditionalGeneration",
        text="Qwen3VLText",
        vision="Qwen3VLVision",
        of_vision={**VISION, "out_hidden_size": 32},
    ),
    "qwen3-vl-moe": Case(
        "Qwen3VLMoe",
        {"head_dim": 16, "rope_parameters": SECTIONS, **EXPERTS},
        model="Qwen3VLMoeForConditionalGeneration",
        text="Qwen3VLMoeText",
        vision="Qwen3VLMoeVision",
        of_vision={**VISION, "out_hidden_size": 32},
    ),
    "qwen2-vl": Case(
        "Qwen2VL",
        {"rope_parameters": MROPE},
        model="Qwen2VLForConditionalGeneration",
        text="Qwen2VLText",
        vision="Qwen2VLVision",
        of_vision={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
    ),
    "qwen2.5-vl": Case(
        "Qwen2_5_VL",
        {"rope_parameters": MROPE},
        model="Qwen2_5_VLForConditionalGeneration",
        text="Qwen2_5_VLText",
        vision="Qwen2_5_VLVision",
        of_vision={**VISION, "out_hidden_size": 32},
    ),
    "gemma2": Case(
        "Gemma2",
        {
            **ODD,
            "sliding_window": 10,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": Case(
        "Gemma3Text",
        {
            "num_hidden_layers": 7,
            **ODD,
            "sliding_window": 7,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        model="Gemma3ForCausalLM",
    ),
    "gemma4": Case("Gemma4Text", GEMMA4_DENSE, model="Gemma4ForCausalLM"),
    "gemma4-values-of-their-own": Case(
        "Gemma4Text", {**GEMMA4, **ODD, "num_key_value_heads": 1}, model="Gemma4ForCausalLM"
    ),
    "gemma4-experts": Case(
        "Gemma4Text", {**GEMMA4_DENSE, **GEMMA4_EXPERTS}, model="Gemma4ForCausalLM"
    ),
    "gemma4-e": Case("Gemma4Text", {**GEMMA4, **GEMMA4_E}, model="Gemma4ForCausalLM"),
    "gemma4-e-with-images": Case(
        "Gemma4",
        {**GEMMA4, **GEMMA4_E},
        model="Gemma4ForConditionalGeneration",
        text="Gemma4Text",
        vision="Gemma4Vision",
        of_vision={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    ),
    "gemma4-unified": Case("Gemma4UnifiedText", GEMMA4_12B, model="Gemma4UnifiedForCausalLM"),
    "gemma4-unified-with-images": Case(
        "Gemma4Unified",
        GEMMA4_12B,
        model="Gemma4UnifiedForConditionalGeneration",
        text="Gemma4UnifiedText",
        vision="Gemma4UnifiedVision",
    ),
    "phi3": Case("Phi3", {**ODD, "sliding_window": 13}),
    "phi3-longrope-short": Case(
        "Phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "partial_rotary_factor": 0.75,
                "short_factor": SHORT,
                "long_factor": LONG,
                "rope_theta": 1e4,
            },
        },
        max_model_len=64,
        longest=61,
    ),
    "smollm3": Case("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3-windows": Case(
        "SmolLM3",
        {
            **ODD,
            "no_rope_layers": [1, 0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": Case("Olmo2", ODD),
    "olmo3": Case("Olmo3", {"sliding_window": 9}),
    "olmo3-scaled": Case(
        "Olmo3",
        {
            **ODD,
            "sliding_window": 9,
            "layer_types": PATTERN,
            "rope_parameters": {
                "full_attention": {**YARN, "attention_factor": 1.3},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "exaone4": Case("Exaone4", {**ODD, "sliding_window": 9, "sliding_window_pattern": 3}),
    "exaone4-without-windows": Case(
        "Exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 4,
            "rope_parameters": LLAMA3,
        },
    ),
    "seed-oss": Case("SeedOss", {"head_dim": 16}),
    "seed-oss-output-biased": Case(
        "SeedOss", {**ODD, "attention_out_bias": True, "mlp_bias": True}
    ),
    "granite": Case("Granite", {**GRANITE, **ODD, "attention_bias": True}),
    "granite-moe": Case("GraniteMoe", {**GRANITE, **ODD, "num_local_experts": 5}),
    "granite-moe-shared": Case(
        "GraniteMoeShared", {**GRANITE, "num_local_experts": 5, "shared_intermediate_size": 40}
    ),
    "granite4-dense": Case(
        "GraniteMoeHybrid",
        {
            **GRANITE,
            "layer_types": ["attention"] * 4,
            "mamba_n_heads": 8,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "shared_intermediate_size": 40,
        },
    ),
    "granite4-experts-without-positions": Case(
        "GraniteMoeHybrid",
        {
            **GRANITE,
            "layer_types": ["attention"] * 4,
            "mamba_n_heads": 8,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "position_embedding_type": "nope",
            "shared_intermediate_size": 40,
        },
    ),
    "granite4-hybrid": Case(
        "GraniteMoeHybrid",
        {
            **GRANITE,
            "num_hidden_layers": 5,
            "layer_types": ["mamba", "mamba", "attention", "mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 12,
            "mamba_expand": 2,
            "num_local_experts": 0,
            "position_embedding_type": "nope",
            "shared_intermediate_size": 40,
        },
    ),
    "granite4-hybrid-experts": Case(
        "GraniteMoeHybrid",
        {
            **GRANITE,
            **ODD,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "mamba_n_heads": 4,
            "mamba_d_head": 18,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_d_conv": 3,
            "mamba_expand": 2,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "position_embedding_type": "rope",
            "shared_intermediate_size": 40,
        },
    ),
    "nemotron-h": Case(
        "NemotronH",
        {
            **NEMOTRON,
            "layers_block_type": ["mamba", "mlp", "attention", "moe", "mamba", "moe"],
            "num_hidden_layers": 6,
        },
    ),
    "nemotron-h-by-pattern": Case(
        "NemotronH",
        {
            **NEMOTRON,
            **ODD,
            "hybrid_override_pattern": "M-M*-",
            "num_hidden_layers": 5,
            "n_groups": 1,
            "use_conv_bias": False,
        },
    ),
    "falcon-h1": Case("FalconH1", {**FALCON_H1, "mamba_rms_norm": False}),
    "falcon-h1-normed": Case(
        "FalconH1",
        {
            **FALCON_H1,
            "head_dim": 16,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_d_head": "auto",
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "falcon-h1-normed-before-its-gate": Case(
        "FalconH1",
        {
            **FALCON_H1,
            "num_hidden_layers": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
            "mamba_n_groups": 1,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "hunyuan-dense": Case("HunYuanDenseV1", ODD),
    "bitnet": Case(
        "BitNet", {**ODD_WHOLE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    ),
    "hunyuan-dense-stretched": Case(
        "HunYuanDenseV1",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 1e4,
                "alpha": 1000.0,
                "factor": 1.0,
            },
        },
    ),
    "ernie4.5": Case("Ernie4_5", ODD),
    "ernie4.5-moe": Case("Ernie4_5_Moe", {**ERNIE_MOE}),
    "ernie4.5-moe-without-shared": Case(
        "Ernie4_5_Moe",
        {**ERNIE_MOE, "moe_num_shared_experts": 0, "moe_layer_interval": 2, **ODD},
    ),
    "mixtral": Case("Mixtral", {**ODD, "num_local_experts": 5, "sliding_window": 12}),
    "qwen2-moe": Case(
        "Qwen2Moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [1],
            "decoder_sparse_step": 1,
        },
    ),
    "qwen2-moe-sparse-step": Case(
        "Qwen2Moe",
        {
            **EXPERTS,
            **ODD,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen3-moe": Case("Qwen3Moe", {**EXPERTS, **ODD, "norm_topk_prob": True}),
    "gpt-oss": Case(
        "GptOss",
        {
            "head_dim": 12,
            "sliding_window": 9,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "beta_fast": 8.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "olmoe": Case("Olmoe", {**ODD_WHOLE, "num_experts": 6, "num_experts_per_tok": 3}),
    "lfm2": Case(
        "Lfm2",
        {
            "num_hidden_layers": 5,
            "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"],
            "block_multiple_of": 8,
        },
    ),
    "lfm2-biased": Case(
        "Lfm2",
        {
            **ODD,
            "full_attn_idxs": [2],
            "conv_L_cache": 6,
            "conv_bias": True,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2-moe": Case(
        "Lfm2Moe",
        {
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "moe_intermediate_size": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_dense_layers": 1,
            "routed_scaling_factor": 1.5,
        },
    ),
    "lfm2-moe-without-corrections": Case(
        "Lfm2Moe",
        {
            **ODD,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "moe_intermediate_size": 24,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "use_expert_bias": False,
            "norm_topk_prob": False,
        },
    ),
    "qwen3.5": Case(
        "Qwen3_5Text",
        {
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_conv_kernel_dim": 4,
            "num_hidden_layers": 5,
        },
        model="Qwen3_5ForCausalLM",
    ),
    "qwen3.5-moe": Case(
        "Qwen3_5MoeText",
        {
            **ODD,
            "head_dim": 24,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_hidden_layers": 3,
            "shared_expert_intermediate_size": 40,
            **EXPERTS,
        },
        model="Qwen3_5MoeForCausalLM",
    ),
    "deepseek-v2-lite": Case(
        "DeepseekV2",
        {
            **LATENT,
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek-v2-groups": Case(
        "DeepseekV2",
        {
            **LATENT,
            **ODD_WHOLE,
            "num_key_value_heads": 6,
            "q_lora_rank": 20,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        },
    ),
    "deepseek-v3": Case(
        "DeepseekV3",
        {
            **LATENT,
            **ODD_WHOLE,
            "num_key_value_heads": 6,
            "q_lora_rank": 18,
            "first_k_dense_replace": 2,
            "n_routed_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "glm4-moe-lite": Case(
        "Glm4MoeLite",
        {
            **LATENT,
            **ODD_WHOLE,
            "num_key_value_heads": 6,
            "q_lora_rank": 20,
            "n_routed_experts": 8,
            "rms_norm_eps": 1e-5,
        },
    ),
    "qwen3-next": Case(
        "Qwen3Next",
        {
            **ODD,
            "head_dim": 24,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 6,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [1],
            **EXPERTS,
        },
    ),
}
