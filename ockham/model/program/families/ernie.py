"""Ernie 4.5."""

from __future__ import annotations

from dataclasses import replace

from ockham.model.program.record import Architecture, ExpertRecord, by_interval

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

RECORDS = (
    _ERNIE,
    _ERNIE_MOE,
)
