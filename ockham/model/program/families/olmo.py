"""OLMo 2 and 3, OLMoE and EXAONE 4, whose norms stand behind the branches."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import (
    Architecture,
    ExpertRecord,
    by_pattern,
    rotated_in_windows,
    three_of_four,
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

RECORDS = (
    _OLMO2,
    _OLMO3,
    _EXAONE4,
    _OLMOE,
)
