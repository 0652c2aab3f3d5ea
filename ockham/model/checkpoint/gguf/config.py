"""A GGUF file's metadata as the config.json that its checkpoint had, and names of its tensors.

The tables follow llama.cpp's convert_hf_to_gguf.py, read backwards. What llama.cpp knows without
being told (Gemma's attention scale, windows and local rotary base) is known here or by the records
of `architectures`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.checkpoint.gguf.gemma4 import read_assistant, read_gemma4
from ockham.model.checkpoint.gguf.nemotron_h import read_nemotron_h
from ockham.model.checkpoint.gguf.strings import STRINGS
from ockham.model.program.architectures import ARCHITECTURES
from ockham.model.program.description import ModelDescription, describe
from ockham.model.program.record import Architecture, StateSpaceRecord
from ockham.model.program.values import Spelling

KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "leading_dense_block_count": "moe_layer_start_index",
    "interleave_moe_layer_step": "moe_layer_interval",
    "expert_shared_count": "moe_num_shared_experts",
    "shortconv.l_cache": "conv_L_cache",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "attention.kv_lora_rank": "kv_lora_rank",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "full_attention_interval": "full_attention_interval",
    "nextn_predict_layers": "mtp_num_hidden_layers",
    "hidden_activation": "hidden_act",
}
"""Key of the metadata, after its `ARCHITECTURE.` -> key of config.json."""

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Name of a tensor in a layer, as transformers has it -> as GGUF has it after `blk.N.`."""

_GEMMA = {
    **LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GEMMA4 = {
    **_GEMMA,
    "layer_scalar": "layer_output_scale",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
}
_GEMMA4_EXPERTS = {
    **_GEMMA4,
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps",
    "experts.down_proj": "ffn_down_exps",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}
_PHI3 = {**LAYER, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
_MIXTRAL = {
    **LAYER,
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "block_sparse_moe.experts.gate_up_proj": "ffn_gate_up_exps",
    "block_sparse_moe.experts.down_proj": "ffn_down_exps",
}
_EXPERTS = {
    **LAYER,
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps",  # of `--fuse-gate-up-exps`
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_GPT_OSS = {
    **LAYER,
    "self_attn.sinks": "attn_sinks",
    "post_attention_layernorm": "post_attention_norm",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_POST_NORMS = {
    **LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_SEED = {**LAYER, "post_attention_layernorm": "post_attention_norm"}
_HUNYUAN = {
    **LAYER,
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
}
_ERNIE_EXPERTS = {
    **_EXPERTS,
    "mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_GRANITE_EXPERTS = {
    **LAYER,
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.experts.gate_proj": "ffn_gate_exps",
    "block_sparse_moe.experts.up_proj": "ffn_up_exps",
    "block_sparse_moe.experts.down_proj": "ffn_down_exps",
    "block_sparse_moe.input_linear": "ffn_gate_up_exps",
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.gate_proj": "ffn_gate_shexp",
    "shared_mlp.up_proj": "ffn_up_shexp",
    "shared_mlp.output_linear": "ffn_down_shexp",
}
_LFM2 = {
    "operator_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv",
    "conv.out_proj": "shortconv.out_proj",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
_LFM2_EXPERTS = {
    **_LFM2,
    "feed_forward.gate": "ffn_gate_inp",
    "feed_forward.expert_bias": "exp_probs_b.bias",
    "feed_forward.experts.w1": "ffn_gate_exps",
    "feed_forward.experts.w3": "ffn_up_exps",
    "feed_forward.experts.w2": "ffn_down_exps",
}
_DELTA = {
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_qkvz": "ssm_in",  # of early files
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "post_attention_layernorm": "post_attention_norm",
}
_BITNET = {
    **LAYER,
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
_STATE_SPACE = {
    "mamba.in_proj": "ssm_in",
    "mamba.conv1d": "ssm_conv1d",
    "mamba.A_log": "ssm_a",
    "mamba.dt_bias": "ssm_dt.bias",
    "mamba.D": "ssm_d",
    "mamba.norm": "ssm_norm",
    "mamba.out_proj": "ssm_out",
}
_NEMOTRON_H = {
    "norm": "attn_norm",
    "mixer.q_proj": "attn_q",
    "mixer.k_proj": "attn_k",
    "mixer.v_proj": "attn_v",
    "mixer.o_proj": "attn_output",
    "mixer.up_proj": "ffn_up",
    "mixer.down_proj": "ffn_down",
    **{name.replace("mamba.", "mixer."): theirs for name, theirs in _STATE_SPACE.items()},
    "mixer.gate": "ffn_gate_inp",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.experts.up_proj": "ffn_up_exps",
    "mixer.experts.down_proj": "ffn_down_exps",
    "mixer.shared_experts.up_proj": "ffn_up_shexp",
    "mixer.shared_experts.down_proj": "ffn_down_shexp",
}
_FALCON_H1 = {
    **LAYER,
    **_STATE_SPACE,
    "pre_ff_layernorm.weight": "ffn_norm",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
}
_BARE = ("ssm_a", "ssm_d", "ffn_norm")
"""Tensors whose names end in neither weight nor bias, where they stand for a whole name; the last
one is Falcon-H1's."""
_DEEPSEEK = {
    **_EXPERTS,
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.k_b_proj": "attn_k_b",
    "self_attn.v_b_proj": "attn_v_b",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_BLOCK = {
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
}
"""What stands beside the layer of a block that drafts, in any architecture: such layers come behind
the model's own."""
OUTSIDE = {
    "embed_tokens": "token_embd",
    "embeddings": "token_embd",
    "norm": "output_norm",
    "norm_f": "output_norm",
    "final_layernorm": "output_norm",
    "embedding_norm": "token_embd_norm",  # LFM2's last norm
    "lm_head": "output",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "pre_projection": "nextn.pre_projection",
    "post_projection": "nextn.post_projection",
}
"""The same for the tensors outside of layers."""


@dataclasses.dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """What GGUF calls an architecture: its record here, its names, whether queries and keys have
    their rows reordered (llama.cpp rotates neighbours, transformers halves), for how many layers
    the scale of attention is that of hidden_size / heads instead of the head's size, whether the
    weights of a row's experts are made to sum to one where the metadata does not say, and whether
    the dimensions between which YaRN blends are whole ones.

    `windowed` is the record of files that name a window, `by_sigmoid` that of files whose experts
    are chosen by the sigmoid of their scores. `windows` are those of files that name
    none, by the number of layers: none where it is not listed. `shared` names the gate and up of
    the shared expert where its record has them fused, `dense` the gate, up and down of
    feed-forwards where the record has others. `tiled` says that the converter lets the value heads
    of delta rules take turns among key heads. `assumed` gives values of config.json that early
    files do not say. `read` gives those that the metadata (`given`), the tensors' shapes and
    rope_freqs say in a way of their own, those of the rotary embedding among them."""

    record: str
    layer: Mapping[str, str] = dataclasses.field(default_factory=lambda: LAYER)
    reordered: bool = False
    scaled_by_width_at: int | None = None
    normalised: bool = False
    whole_dimensions: bool = True
    windowed: str | None = None
    by_sigmoid: str | None = None
    windows: Mapping[int, int] | None = None
    shared: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    tiled: bool = False
    assumed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {}
    read: (
        Callable[[Callable[[str], Any], Mapping[str, tuple[int, ...]], list[float]], dict[str, Any]]
        | None
    ) = None


def _minicpm(config: Mapping[str, Any]) -> dict[str, Any]:
    """The multipliers of the first MiniCPM, of which early files say none."""
    return {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / math.sqrt(config["num_hidden_layers"]),
        "logits_scaling": config["hidden_size"] / 256,
    }


GGUF_ARCHITECTURES = {
    "llama": GgufArchitecture("LlamaForCausalLM", reordered=True),
    "qwen2": GgufArchitecture("Qwen2ForCausalLM"),
    "qwen3": GgufArchitecture("Qwen3ForCausalLM"),
    "gemma2": GgufArchitecture("Gemma2ForCausalLM", _GEMMA, scaled_by_width_at=46),
    "gemma3": GgufArchitecture("Gemma3ForCausalLM", _GEMMA, scaled_by_width_at=62),
    "gemma4": GgufArchitecture("Gemma4ForCausalLM", _GEMMA4, read=read_gemma4),
    "phi3": GgufArchitecture("Phi3ForCausalLM", _PHI3),
    "mistral3": GgufArchitecture("Ministral3ForCausalLM", reordered=True),
    "qwen2vl": GgufArchitecture("Qwen2ForCausalLM"),
    "qwen3vl": GgufArchitecture("Qwen3ForCausalLM"),
    "smollm3": GgufArchitecture("SmolLM3ForCausalLM", reordered=True),
    "olmo2": GgufArchitecture("Olmo2ForCausalLM", _POST_NORMS, windowed="Olmo3ForCausalLM"),
    "exaone4": GgufArchitecture("Exaone4ForCausalLM", _POST_NORMS, windows={64: 4096}),
    "seed_oss": GgufArchitecture("SeedOssForCausalLM", _SEED),
    "granite": GgufArchitecture("GraniteForCausalLM", reordered=True),
    "granitemoe": GgufArchitecture("GraniteForCausalLM", reordered=True),
    "minicpm": GgufArchitecture("GraniteForCausalLM", reordered=True, assumed=_minicpm),
    "hunyuan-dense": GgufArchitecture("HunYuanDenseV1ForCausalLM", _HUNYUAN),
    "ernie4_5": GgufArchitecture("Ernie4_5ForCausalLM"),
    "lfm2": GgufArchitecture("Lfm2ForCausalLM", _LFM2),
    "bitnet": GgufArchitecture(
        "BitNetForCausalLM", _BITNET, assumed=lambda config: {"hidden_act": "silu"}
    ),
    "bitnet-25": GgufArchitecture("BitNetForCausalLM", _BITNET),
    "bitnet-b1.58": GgufArchitecture("BitNetForCausalLM", _BITNET),
    "qwen35": GgufArchitecture("Qwen3_5ForCausalLM", {**LAYER, **_DELTA}, tiled=True),
    "granitehybrid": GgufArchitecture(
        "GraniteMoeHybridForCausalLM",
        {**LAYER, **_STATE_SPACE},
        reordered=True,
        dense=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        assumed=lambda config: {
            "num_local_experts": 0,
            "shared_intermediate_size": config.get("intermediate_size"),
        },
    ),
    "falcon-h1": GgufArchitecture("FalconH1ForCausalLM", _FALCON_H1),
    "nemotron_h": GgufArchitecture(
        "NemotronHForCausalLM", _NEMOTRON_H, reordered=True, read=read_nemotron_h
    ),
}
"""`general.architecture` -> what it is here. Mistral's models call themselves llama; the text parts
of Qwen's models of images are as those without; MiniCPM's multipliers are Granite's."""

GGUF_MIXTURES = {
    "llama": GgufArchitecture("MixtralForCausalLM", _MIXTRAL, reordered=True, normalised=True),
    "gemma4": GgufArchitecture(
        "Gemma4ForCausalLM", _GEMMA4_EXPERTS, normalised=True, read=read_gemma4
    ),
    "qwen2moe": GgufArchitecture("Qwen2MoeForCausalLM", _EXPERTS),
    "qwen3moe": GgufArchitecture("Qwen3MoeForCausalLM", _EXPERTS, normalised=True),
    "qwen3vlmoe": GgufArchitecture("Qwen3MoeForCausalLM", _EXPERTS, normalised=True),
    "olmoe": GgufArchitecture("OlmoeForCausalLM", _EXPERTS),
    "gpt-oss": GgufArchitecture(
        "GptOssForCausalLM", _GPT_OSS, normalised=True, whole_dimensions=False
    ),
    "granitemoe": GgufArchitecture(
        "GraniteMoeForCausalLM",
        _GRANITE_EXPERTS,
        reordered=True,
        normalised=True,
        shared=(".shared_mlp.gate_proj", ".shared_mlp.up_proj"),
    ),
    "granitehybrid": GgufArchitecture(
        "GraniteMoeHybridForCausalLM",
        {**_GRANITE_EXPERTS, **_STATE_SPACE},
        reordered=True,
        normalised=True,
        shared=(".shared_mlp.gate_proj", ".shared_mlp.up_proj"),
    ),
    "nemotron_h_moe": GgufArchitecture(
        "NemotronHForCausalLM",
        _NEMOTRON_H,
        reordered=True,
        normalised=True,
        read=read_nemotron_h,
    ),
    "lfm2moe": GgufArchitecture("Lfm2MoeForCausalLM", _LFM2_EXPERTS, normalised=True),
    "ernie4_5-moe": GgufArchitecture("Ernie4_5_MoeForCausalLM", _ERNIE_EXPERTS, normalised=True),
    "deepseek2": GgufArchitecture(
        "DeepseekV2ForCausalLM", _DEEPSEEK, by_sigmoid="DeepseekV3ForCausalLM"
    ),
    "qwen3next": GgufArchitecture("Qwen3NextForCausalLM", {**_EXPERTS, **_DELTA}, normalised=True),
    "qwen35moe": GgufArchitecture(
        "Qwen3_5MoeForCausalLM", {**_EXPERTS, **_DELTA}, normalised=True, tiled=True
    ),
}
"""The same for mixtures of experts: where there is an `expert_count`."""

GGUF_ASSISTANTS = {
    "gemma4-assistant": GgufArchitecture("Gemma4ForCausalLM", _GEMMA4, read=read_assistant),
}
"""What drafts for another model, and is none."""

_KV_HEADS = "attention.head_count_kv"
_SOFTMAX, _SIGMOID, _SOFTMAX_OF_CHOSEN = 1, 2, 3
_MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier")

END_TOKENS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
        *("<EOT>", "_<EOT>", "[EOT]", "<|end_of_text|>", "<end_of_utterance>"),
        *("<|return|>", "<|call|>", "<eos>", "<turn|>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)
"""Tokens that end a generation wherever they are control tokens, as in llama.cpp's vocabulary."""

_CALLED = "<|tool_response>"
"""What Gemma 4 writes behind its calls; its files have it as a token of the user's."""

_HARMONY_ENDS = {"<|return|>", "<|call|>"}
"""Where both are there, "<|end|>" ends one of several messages of an answer."""

_CONTROL, _USER = 3, 4


def find_gguf_architecture(metadata: Mapping[str, Any]) -> tuple[str, GgufArchitecture]:
    """The name in the metadata, and what it is; raises ModelError with the list of those known."""
    name = str(metadata.get("general.architecture"))
    if name in GGUF_ASSISTANTS:
        return name, GGUF_ASSISTANTS[name]
    mixture = bool(metadata.get(f"{name}.expert_count"))
    known = GGUF_MIXTURES if mixture else GGUF_ARCHITECTURES
    if name not in known:
        kind = "mixture of experts" if mixture else "architecture"
        raise ModelError(
            f"the GGUF {kind} {shown(name)} is not supported; supported are {', '.join(known)}."
        )
    found = known[name]
    if found.by_sigmoid is not None and metadata.get(f"{name}.expert_gating_func") == _SIGMOID:
        found = dataclasses.replace(found, record=found.by_sigmoid)
    return name, found


def config_of(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, list[float]],
) -> dict[str, Any]:
    """The config.json of a file with tensors of these shapes.

    `factors` are the values of the tensors rope_freqs, rope_factors_long and rope_factors_short,
    those of them that there are. Raises ModelError for what is not supported.
    """
    name, architecture = find_gguf_architecture(metadata)
    try:
        return _config_of(name, architecture, metadata, shapes, factors)
    except ModelError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"its metadata have a value of the wrong kind: {shown(error)}.") from error


def _config_of(
    name: str,
    architecture: GgufArchitecture,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, list[float]],
) -> dict[str, Any]:
    def given(key: str) -> Any:
        return metadata.get(f"{name}.{key}")

    config: dict[str, Any] = {}
    attending = given(_KV_HEADS)
    known = ARCHITECTURES[architecture.record]
    if architecture.read is not None:
        config |= architecture.read(given, shapes, factors.get("rope_freqs", []))
    elif isinstance(attending, list) and (known.convolution or known.state_space):
        config |= _attending_layers(f"{name}.{_KV_HEADS}", attending, known)
    config |= {
        ours: _one_value(f"{name}.{theirs}", given(theirs))
        for theirs, ours in KEYS.items()
        if given(theirs) is not None and ours not in config
    }
    if name in GGUF_ASSISTANTS:
        config.pop("mtp_num_hidden_layers", None)  # all of its layers, which are counted once
    config |= _own_layers(config)
    if known.delta is not None:
        config |= _delta_layers(given, config, architecture.tiled)
    if known.state_space is not None:
        config |= _state_spaces(known.state_space, config, given, shapes)
    latent = known.latent is not None
    if latent:
        config |= _latent_sizes(given)
        config.pop("head_dim", None)  # of the absorbed form, or of both its parts
    # A multiplier of 0 says that there is none, as in llama.cpp.
    config = {key: value for key, value in config.items() if value != 0 or key not in _MULTIPLIERS}
    config = {**architecture.assumed(config), **config}
    record = architecture.record
    if config.get("sliding_window"):
        record = architecture.windowed or record
        config |= _layer_types(given("attention.sliding_window_pattern"), config)
    elif architecture.windows is not None:
        config["sliding_window"] = architecture.windows.get(config["num_hidden_layers"])
    config["architectures"] = [record]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    held = {each.partition(".")[2].partition(".")[2] for each in shapes}
    biased = bool(held & {"attn_q.bias", "attn_qkv.bias"})
    config["attention_bias"] = config["qkv_bias"] = biased
    config["attention_out_bias"] = "attn_output.bias" in held
    config["mlp_bias"] = "ffn_up.bias" in held
    if given("rope.scaling.finetuned") is False:  # so says Granite 4 that nothing is rotated
        config["position_embedding_type"] = "nope"
    if config.get("num_experts"):
        _add_experts(config, architecture, given, shapes)
    if "token_embd.weight" not in shapes:
        others = f"only {len(shapes)} others" if shapes else "no tensors at all"
        raise ModelError(f"it lacks the tensor 'token_embd.weight' and holds {others}.")
    config["vocab_size"] = shapes["token_embd.weight"][0]
    sizes = [config.get(key) for key in ("hidden_size", "num_attention_heads")]
    if all(isinstance(size, int) and size > 0 for size in sizes):
        width = config["hidden_size"] // config["num_attention_heads"]
        head_dim = config.setdefault("head_dim", width)
        config.setdefault("attention_multiplier", 1 / math.sqrt(head_dim))
        if architecture.scaled_by_width_at is not None:
            wide = config.get("num_hidden_layers") == architecture.scaled_by_width_at
            config["query_pre_attn_scalar"] = width if wide else head_dim
        rotated = given("rope.dimension_count")
        whole = latent or architecture.read is not None
        if rotated is not None and rotated != head_dim and not whole:
            config["partial_rotary_factor"] = rotated / head_dim
    scaling = None if architecture.read is not None else _rope_scaling(given, factors)
    if scaling is not None:
        if scaling["rope_type"] == "yarn" and not architecture.whole_dimensions:
            scaling["truncate"] = False
        if latent and "mscale" in scaling:  # which the converter writes as a tenth
            scaling["mscale"] = scaling["mscale_all_dim"] = 10 * scaling["mscale"]
        config["rope_scaling"] = scaling
        original = scaling.get("original_max_position_embeddings")
        config |= {} if original is None else {"original_max_position_embeddings": original}
    config["eos_token_id"] = _end_tokens(metadata)
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    config |= {} if bos is None else {"bos_token_id": bos}
    own = ARCHITECTURES[record].keys
    return {own.get(key, key): value for key, value in config.items()}


def _attending_layers(key: str, heads: list[Any], record: Architecture) -> dict[str, Any]:
    """What config.json says of the layers of a model some of which do not attend: those have 0
    key-value heads."""
    if record.convolution is not None:
        kind = record.convolution.layer_type
    else:
        assert record.state_space is not None, "only of such models"
        kind = record.state_space.layer_types[0]
    attending = [count for count in heads if count != 0]
    return {
        "layer_types": [kind if n == 0 else "full_attention" for n in heads],
        "num_key_value_heads": _one_value(key, attending or [1]),
        "block_auto_adjust_ff_dim": False,  # the width is said as it is
    }


def _state_spaces(
    record: StateSpaceRecord,
    config: Mapping[str, Any],
    given: Callable[[str], Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """What config.json says of the sizes of state spaces, and of the rotation beside them."""
    heads, values = given("ssm.time_step_rank"), given("ssm.inner_size")
    whole = all(type(each) is int and each > 0 for each in (heads, values))
    found = {
        record.length: given("ssm.conv_kernel"),
        record.state_dim: given("ssm.state_size"),
        record.groups: given("ssm.group_count"),
        record.heads: heads,
        record.head_dim: values // heads if whole else values,
        record.negative: True,
        "position_embedding_type": "rope",
        record.convolution_bias: any(name.endswith("ssm_conv1d.bias") for name in shapes),
        record.biases: any(name.endswith("ssm_in.bias") for name in shapes),
    }
    if record.output_biases is not None:
        found[record.output_biases] = any(name.endswith("ssm_out.bias") for name in shapes)
    if isinstance(record.normed, str):
        found[record.normed] = any(name.endswith("ssm_norm.weight") for name in shapes)
    if isinstance(record.norm_first, str):  # as llama.cpp has it
        found[record.norm_first] = False
    if record.width is not None:
        found[record.width] = values
    layers = config.get("num_hidden_layers")
    if "layer_types" not in config and type(layers) is int:
        found["layer_types"] = ["full_attention"] * layers
    return found


def _own_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """How many layers are the model's own. Those of blocks that draft stand behind them, and are
    counted with them."""
    if "mtp_num_hidden_layers" not in config:
        return {}
    layers, further = config["num_hidden_layers"], config["mtp_num_hidden_layers"]
    if type(further) is not int or not 0 <= further < layers:
        raise ModelError(
            f"its nextn_predict_layers is {shown(further)}, of {shown(layers)} layers in all."
        )
    return {"num_hidden_layers": layers - further}


def _delta_layers(
    given: Callable[[str], Any], config: Mapping[str, Any], tiled: bool
) -> dict[str, Any]:
    """What config.json says of the layers of a model some of which are delta rules."""
    layers = config["num_hidden_layers"]
    found: dict[str, Any] = {
        "linear_value_heads_take_turns": tiled,
        "linear_decays_are_negative": True,
    }
    recurrent = given("attention.recurrent_layers")
    if recurrent is not None:
        names = ("full_attention", "linear_attention")
        found["layer_types"] = [names[bool(each)] for each in recurrent[:layers]]
    values = given("ssm.inner_size")
    if values is not None:
        found["linear_value_head_dim"] = values // config["linear_num_value_heads"]
    return found


def _latent_sizes(given: Callable[[str], Any]) -> dict[str, Any]:
    """What config.json says of multi-head latent attention. Later files say the sizes of a head
    apart from those of the absorbed form."""

    def size(*keys: str) -> int:
        value = next((found for key in keys if (found := given(key)) is not None), None)
        if type(value) is not int:
            raise ModelError(f"its {keys[-1]} is {shown(value)}; it must be a whole number.")
        return value

    rotated = size("rope.dimension_count")
    return {
        "q_lora_rank": given("attention.q_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": size("attention.key_length_mla", "attention.key_length") - rotated,
        "v_head_dim": size("attention.value_length_mla", "attention.value_length"),
    }


def _layer_types(pattern: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_types` of config.json, where the metadata say which layers see a window: one by one,
    or that every n-th one does not."""
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(config["num_hidden_layers"])]
    if pattern is None:
        return {}
    if not isinstance(pattern, list) or not all(isinstance(each, bool | int) for each in pattern):
        raise ModelError(
            f"its attention.sliding_window_pattern is {shown(pattern)}; a number, or a truth for "
            "each layer, is supported."
        )
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in pattern]}


def _one_value(key: str, value: Any) -> Any:
    """A value that may be given as a list with one entry for each layer. Raises ModelError if those
    differ."""
    if not isinstance(value, list):
        return value
    if not value or any(other != value[0] for other in value):
        raise ModelError(
            f"its key {key} differs from layer to layer ({shown(value)}); that is not supported."
        )
    return value[0]


def describe_gguf(
    config: Mapping[str, Any], name: str, architecture: GgufArchitecture
) -> ModelDescription:
    """The description of a file's config; `name` is what GGUF calls its architecture. GGUF stores
    norms with the offset already added. Raises ModelError, which names the metadata's own keys."""
    names = {ours: f"{name}.{theirs}" for theirs, ours in KEYS.items()}
    description = describe(config, Spelling("its metadata", names))
    record = dataclasses.replace(description.architecture, norm_offset=0.0)
    if record.experts is not None and architecture.shared:
        experts = dataclasses.replace(record.experts, shared_gate_up=architecture.shared)
        record = dataclasses.replace(record, experts=experts)
    if architecture.dense:
        *gate_up, down = architecture.dense
        record = dataclasses.replace(record, gate_up=tuple(gate_up), down=down)
    further = config.get("mtp_num_hidden_layers", 0)
    unused = tuple(f"blk.{description.layers + n}." for n in range(further))
    record = dataclasses.replace(record, unused=(*record.unused, *unused))
    return dataclasses.replace(description, architecture=record)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: whole in the tensor `name`, or as one of those that `name` stacks:
    number `expert`. Other files have it in one of its own, `alone`."""

    name: str
    expert: int | None = None
    alone: str | None = None


def gguf_place(name: str, architecture: GgufArchitecture) -> Place | None:
    """The place of a tensor, e.g. "blk.3.attn_q.weight" of
    "model.layers.3.self_attn.q_proj.weight"; None if there is none."""
    whole = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    entire = architecture.layer.get(whole[2], "") if whole else ""
    if whole and ("." in entire or entire in _BARE):
        return Place(f"blk.{whole[1]}.{entire}", alone=f"blk.{whole[1]}.{entire}.weight")
    base, _, end = name.rpartition(".")
    if end not in ("weight", "bias"):
        base, end = name, "weight"
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(?:(.+\.experts)\.(\d+)\.)?(.+)", base)
    if not layer:
        found = OUTSIDE.get(base.removeprefix("model."))
        return None if found is None else Place(f"{found}.{end}")
    block = f"blk.{layer[1]}."
    if layer[3] is None:
        found = architecture.layer.get(layer[4]) or _BLOCK.get(layer[4])
        return None if found is None else Place(f"{block}{found}.{end}")
    found = architecture.layer.get(f"{layer[2]}.{layer[4]}")
    if found is None:
        return None
    alone = f"{block}{found.removesuffix('_exps')}.{layer[3]}.{end}"
    return Place(f"{block}{found}.{end}", int(layer[3]), alone)


def _add_experts(
    config: dict[str, Any],
    architecture: GgufArchitecture,
    given: Callable[[str], Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """What config.json says of a mixture of experts. Raises ModelError if its router is of a kind
    that is not supported."""
    record = ARCHITECTURES[architecture.record].experts
    assert record is not None, "of a mixture"
    gates = (0, _SIGMOID) if record.sigmoid else (0, _SOFTMAX, _SOFTMAX_OF_CHOSEN)
    scale, groups = given("expert_weights_scale"), given("expert_group_count")
    if record.groups is not None:
        config["topk_method"] = "group_limited_greedy" if (groups or 1) > 1 else "greedy"
        config[record.groups] = groups or 1
    for key, known in (
        ("expert_gating_func", gates),
        ("expert_weights_scale", (0, 1) if record.scale is None else (scale,)),
        ("expert_group_count", (0, 1) if record.groups is None else (groups,)),
    ):
        if (value := given(key)) is not None and value not in known:
            raise ModelError(
                f"its {key} is {shown(value)}; in this architecture only experts that are chosen "
                f"among all by their {'sigmoid' if record.sigmoid else 'softmax'}, and not scaled, "
                "are supported."
            )
    if scale == 0:  # so llama.cpp says that there is none
        del config["routed_scaling_factor"]
    if given("expert_gating_func") == _SOFTMAX_OF_CHOSEN:
        config["norm_topk_prob"] = True
    config.setdefault("norm_topk_prob", architecture.normalised)
    for key, tensor, axis in (
        ("moe_intermediate_size", "ffn_gate_exps", 1),
        ("shared_expert_intermediate_size", "ffn_gate_shexp", 0),
    ):
        shape = shapes.get(f"blk.0.{tensor}.weight")
        if shape is not None and axis < len(shape):  # early files do not say it otherwise
            config.setdefault(key, shape[axis])


def _rope_scaling(given: Any, factors: Mapping[str, list[float]]) -> dict[str, Any] | None:
    """`rope_scaling` of config.json. Factors that divide single frequencies (Llama 3.1) are a
    LongRoPE whose short and long factors are the same.

    As in llama.cpp, a factor without a type scales all positions alike, and files of 2023 call it
    `rope.scale_linear`. Of YaRN's settings the converter writes those that config.json has.
    """
    original = given("rope.scaling.original_context_length")
    attention = given("rope.scaling.yarn_attn_factor")
    attention = given("rope.scaling.attn_factor") if attention is None else attention
    factor = given("rope.scaling.factor")
    factor = given("rope.scale_linear") if factor is None else factor
    kind = given("rope.scaling.type") or "linear"
    if kind == "linear" and factor in (None, 0, 1):
        kind = "none"
    if "rope_freqs" in factors:
        stretch = factor if kind == "linear" else 1
        same = [divisor * stretch for divisor in factors["rope_freqs"]]
        scaling = {"short_factor": same, "long_factor": same, "attention_factor": 1.0}
        return {"rope_type": "longrope", **scaling}
    if "rope_factors_long" in factors and "rope_factors_short" in factors:
        scaling = {
            "short_factor": factors["rope_factors_short"],
            "long_factor": factors["rope_factors_long"],
            "attention_factor": attention,
            "original_max_position_embeddings": original,
        }
        return {"rope_type": "longrope", **{k: v for k, v in scaling.items() if v is not None}}
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling |= {
            "original_max_position_embeddings": original,
            "attention_factor": attention,
            "beta_fast": given("rope.scaling.yarn_beta_fast"),
            "beta_slow": given("rope.scaling.yarn_beta_slow"),
        }
        _check_yarn(given)
    # As in llama.cpp, both of YaRN's mscales are the same, and cancel out.
    multiplier = given("rope.scaling.yarn_log_multiplier")
    scaling |= {"mscale": multiplier, "mscale_all_dim": multiplier}
    scaling["llama_4_scaling_beta"] = given("attention.temperature_scale")
    return {k: v for k, v in scaling.items() if v is not None}


def _check_yarn(given: Any) -> None:
    """Raise ModelError for a YaRN that extrapolates in another way than the paper's."""
    extrapolation = given("rope.scaling.yarn_ext_factor")
    if extrapolation not in (None, -1, 1):
        raise ModelError(
            f"its rope.scaling.yarn_ext_factor is {shown(extrapolation)}; only 1 is supported."
        )


def _end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type")
    spelled: list[int] = []
    if isinstance(tokens, STRINGS) and isinstance(kinds, list):  # else the tokenizer is refused
        control = [i for i, kind in enumerate(kinds[: len(tokens)]) if kind == _CONTROL]
        spelled = [i for i in control if tokens[i] in END_TOKENS]
        marks = [i for i, kind in enumerate(kinds[: len(tokens)]) if kind in (_CONTROL, _USER)]
        spelled += [i for i in marks if tokens[i] == _CALLED]
        if {tokens[i] for i in spelled} >= _HARMONY_ENDS:
            messages = {i for i in spelled if tokens[i] == "<|end|>"}
            named = [i for i in named if i not in messages]
            spelled = [i for i in spelled if i not in messages]
    return list(dict.fromkeys([*(i for i in named if i is not None), *spelled]))
