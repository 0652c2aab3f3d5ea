"""gpt-oss."""

from __future__ import annotations

from ockham.model.program.record import Architecture, ExpertRecord, all_but_every_nth_layer

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
        transposed=True,
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

RECORDS = (_GPT_OSS,)
