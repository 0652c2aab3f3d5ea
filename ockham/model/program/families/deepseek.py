"""DeepSeek V2 and V3, GLM-4.7-Flash: latent attention."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import (
    Architecture,
    ExpertRecord,
    LatentRecord,
    after_the_dense,
    by_kinds,
)

_DEEPSEEK_KEYS = {
    "num_experts": "n_routed_experts",
    "moe_num_shared_experts": "n_shared_experts",
    "moe_layer_start_index": "first_k_dense_replace",
}
_DEEPSEEK_EXPERTS = ExpertRecord(
    layers=after_the_dense,
    optional=True,
    scale="routed_scaling_factor",
    groups="n_group",
    shared_intermediate="moe_intermediate_size",
    shared_count="moe_num_shared_experts",
    shared_gate_up=("shared_experts.gate_proj", "shared_experts.up_proj"),
    shared_down="shared_experts.down_proj",
    shared_gate=None,
)
_DEEPSEEK_V2 = Architecture(
    "DeepseekV2ForCausalLM",
    keys=_DEEPSEEK_KEYS,
    mlp_bias="mlp_bias",
    latent=LatentRecord(),
    experts=replace(
        _DEEPSEEK_EXPERTS,
        normalise=False,
        grouped_where=("topk_method", "group_limited_greedy"),
    ),
    defaults={
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 1407,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
_DEEPSEEK_V3 = replace(
    _DEEPSEEK_V2,
    name="DeepseekV3ForCausalLM",
    mlp_bias=False,
    latent=LatentRecord(neighbours="rope_interleave"),
    experts=replace(
        _DEEPSEEK_EXPERTS, sigmoid=True, correction="gate.e_score_correction_bias", group_best=2
    ),
    unused=("layers.{n}.",),
    defaults={
        **_DEEPSEEK_V2.defaults,
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
)
_GLM4_MOE_LITE = replace(
    _DEEPSEEK_V3,
    name="Glm4MoeLiteForCausalLM",
    partial_rotary=True,
    experts=replace(_DEEPSEEK_V3.experts, layers=by_kinds),  # type: ignore[type-var]
    defaults={
        **_DEEPSEEK_V3.defaults,
        "vocab_size": 154880,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
    },
)

RECORDS = (
    _DEEPSEEK_V2,
    _DEEPSEEK_V3,
    _GLM4_MOE_LITE,
)
