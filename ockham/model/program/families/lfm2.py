"""LFM2 and its mixtures: short convolutions."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import (
    Architecture,
    ConvolutionRecord,
    ExpertRecord,
    after_the_dense,
    rounded_inner,
)

_LFM2 = Architecture(
    "Lfm2ForCausalLM",
    keys={
        "rms_norm_eps": "norm_eps",
        "intermediate_size": "block_ff_dim",
        "tie_word_embeddings": "tie_embedding",
    },
    attention_norm="operator_norm",
    attention_output="self_attn.out_proj",
    gate_up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    mlp_norm="ffn_norm",
    final_norm="embedding_norm",
    qk_norm="head",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    inner=rounded_inner,
    convolution=ConvolutionRecord(),
    defaults={
        "vocab_size": 65536,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "conv_L_cache": 3,
        "conv_bias": False,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
_LFM2_MOE = replace(
    _LFM2,
    name="Lfm2MoeForCausalLM",
    keys={
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embedding",
        "moe_layer_start_index": "num_dense_layers",
    },
    inner=None,
    experts=ExpertRecord(
        blocks=("feed_forward.",),
        correction="expert_bias",
        correction_switch="use_expert_bias",
        sigmoid=True,
        scale="routed_scaling_factor",
        gate="w1",
        up="w3",
        down="w2",
        layers=after_the_dense,
    ),
    defaults={
        **_LFM2.defaults,
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "moe_layer_start_index": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "routed_scaling_factor": 1.0,
    },
)

RECORDS = (
    _LFM2,
    _LFM2_MOE,
)
