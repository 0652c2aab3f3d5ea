"""Falcon-H1 of the Technology Innovation Institute: attention and a state space side by side."""

from __future__ import annotations

from ockham.model.program.record import Architecture, MultiplierRecord, StateSpaceRecord

_FALCON_H1 = Architecture(
    "FalconH1ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    gate_up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    mlp_norm="pre_ff_layernorm",
    final_norm="final_layernorm",
    embedding_scale="embedding_multiplier",
    logits_multiplier="lm_head_multiplier",
    multipliers=MultiplierRecord(),
    state_space=StateSpaceRecord(
        beside=True,
        normed="mamba_rms_norm",
        norm_first="mamba_norm_before_gate",
        width="mamba_d_ssm",
        output_biases="projectors_bias",
    ),
    defaults={
        "vocab_size": 128000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "mamba_d_ssm": 1024,
        "mamba_n_heads": 128,
        "mamba_d_head": "auto",
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_conv_bias": True,
        "mamba_norm_before_gate": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)

RECORDS = (_FALCON_H1,)
