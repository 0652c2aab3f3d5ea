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
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}

CASES = {
    "llama2": Case("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama-tied-biased": Case(
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
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
    "mistral-without-window": Case("Mistral", {"sliding_window": None}),
    "qwen2": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-upper-layers-slide": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    ),
    "qwen3": Case("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma2": Case(
        "Gemma2",
        {
            "head_dim": 16,
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
            "head_dim": 16,
            "sliding_window": 7,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        model="Gemma3ForCausalLM",
    ),
    "phi3": Case("Phi3", {"sliding_window": 13}),
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
    ),
    "smollm3": Case("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3-windows": Case(
        "SmolLM3",
        {
            "no_rope_layers": [1, 0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": Case("Olmo2"),
    "granite": Case(
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 0.5,
            "attention_bias": True,
        },
    ),
    "mixtral": Case("Mixtral", {"num_local_experts": 5, "sliding_window": 12}),
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
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen3-moe": Case("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": Case("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
}
