"""Models without attention over all that came before: MatMul-free LM."""

from __future__ import annotations

from ockham.model.program.record import (
    Architecture,
    GruRecord,
    inner_by_ratio,
    no_layer,
)

_MATMUL_FREE = Architecture(
    "HGRNBitForCausalLM",
    table="embeddings",
    keys={"num_attention_heads": "num_heads"},
    gate_up=("mlp.gate_proj",),
    attention_norm="attn_norm",
    mlp_norm="mlp_norm",
    matrix_norm="norm",
    ternary=True,
    inner=inner_by_ratio,
    rotates=no_layer,
    gru=GruRecord(),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_heads": 1,
        "hidden_act": "swish",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "use_lower_bound": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)

RECORDS = (_MATMUL_FREE,)
