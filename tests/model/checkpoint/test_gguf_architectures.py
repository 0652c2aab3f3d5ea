"""GGUF files of the later architectures: what llama.cpp's converter writes gives the model that the
directory gives."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import AttentionInput
from ockham.model.checkpoint.gguf.config import (
    GGUF_ARCHITECTURES,
    GGUF_MIXTURES,
    config_of,
    describe_gguf,
)
from ockham.model.checkpoint.gguf.strings import STRINGS
from ockham.model.checkpoint.pairs import in_halves
from ockham.model.loading import load_model
from ockham.model.program.decoders import DECODERS
from tests.helpers.architectures import CASES
from tests.helpers.gguf_files import permute, write_gguf
from tests.helpers.oracle import COMMON, Case, assert_same_logits, longrope, oracle_logits
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama

Writer = gguf.GGUFWriter


def granite(writer: Writer) -> None:
    writer.add_attention_scale(0.2)
    writer.add_embedding_scale(3.0)
    writer.add_residual_scale(0.4)
    writer.add_logit_scale(0.5)


def granite_shared(writer: Writer) -> None:
    granite(writer)
    writer.add_expert_shared_feed_forward_length(40)


def granite_without_positions(writer: Writer) -> None:
    granite_shared(writer)
    writer.add_rope_scaling_finetuned(False)


def yarn(writer: Writer) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


def ministral(writer: Writer) -> None:
    yarn(writer)
    writer.add_rope_scaling_yarn_log_mul(1.0)
    writer.add_attn_temperature_scale(0.3)


def olmo3_scaled(writer: Writer) -> None:
    yarn(writer)
    writer.add_rope_scaling_yarn_attn_factor(1.3)
    writer.add_sliding_window_pattern([True, False, True, False])


def every_third(writer: Writer) -> None:
    writer.add_sliding_window_pattern([True, True, False, True])


def ernie_moe(writer: Writer) -> None:
    writer.add_leading_dense_block_count(1)
    writer.add_interleave_moe_layer_step(1)
    writer.add_expert_shared_count(2)
    writer.add_expert_count(6)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(24)
    writer.add_expert_shared_feed_forward_length(24)  # which llama.cpp computes otherwise


def minicpm(writer: Writer) -> None:
    writer.add_embedding_scale(3.0)
    writer.add_residual_scale(0.4)
    writer.add_logit_scale(0.5)


def lfm2(writer: Writer) -> None:
    writer.add_shortconv_l_cache(3)


def lfm2_moe(writer: Writer) -> None:
    lfm2(writer)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(1.5)


def squared(writer: Writer) -> None:
    writer.add_string(f"{writer.arch}.hidden_activation", "relu2")


def gemma4(writer: Writer) -> None:
    writer.add_key_length(32)
    writer.add_key_length_swa(16)
    writer.add_rope_dimension_count(32)
    writer.add_rope_dimension_count_swa(16)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_sliding_window_pattern([True, False, True, False])
    writer.add_head_count_kv([2, 1, 2, 1])
    writer.add_embedding_length_per_layer_input(0)
    writer.add_shared_kv_layers(0)


def gemma4_experts(writer: Writer) -> None:
    gemma4(writer)
    writer.add_expert_count(8)
    writer.add_expert_used_count(3)


def gemma4_e(writer: Writer) -> None:
    gemma4(writer)
    writer.add_sliding_window_pattern([True, False, True, False, True, True, False])
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length([48] * 4 + [96] * 3)
    writer.add_embedding_length_per_layer_input(8)
    writer.add_shared_kv_layers(3)


def granite_hybrid(writer: Writer) -> None:
    granite(writer)
    state_spaces(writer, CASES["granite4-hybrid"].values)
    writer.add_rope_scaling_finetuned(False)


def granite_hybrid_experts(writer: Writer) -> None:
    granite_shared(writer)
    state_spaces(writer, CASES["granite4-hybrid-experts"].values)


def state_spaces(writer: Writer, values: dict[str, Any]) -> None:
    heads = values["mamba_n_heads"]
    writer.add_ssm_conv_kernel(values.get("mamba_d_conv", 4))
    writer.add_ssm_state_size(values["mamba_d_state"])
    writer.add_ssm_group_count(values["mamba_n_groups"])
    writer.add_ssm_inner_size(heads * values["mamba_d_head"])
    writer.add_ssm_time_step_rank(heads)


def nemotron_h(writer: Writer) -> None:
    """Of the kinds M-M*-."""
    sizes_of_nemotron(writer, CASES["nemotron-h-by-pattern"].values)
    writer.add_head_count_kv([0, 0, 0, 2, 0])
    writer.add_feed_forward_length([0, 52, 0, 0, 52])


def nemotron_h_experts(writer: Writer) -> None:
    """Of the kinds M-*EME, of which the second is in no file of llama.cpp's."""
    sizes_of_nemotron(writer, CASES["nemotron-h"].values)
    writer.add_head_count_kv([0, 0, 2, 0, 0, 0])
    writer.add_feed_forward_length([0, 48, 0, 24, 0, 24])
    writer.add_expert_count(6)
    writer.add_expert_shared_count(1)
    writer.add_expert_shared_feed_forward_length(40)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(1.5)
    writer.add_expert_group_count(1)


def falcon_h1(writer: Writer) -> None:
    state_spaces(writer, CASES["falcon-h1"].values)


def sizes_of_nemotron(writer: Writer, values: dict[str, Any]) -> None:
    names = {
        "mamba_d_state": "ssm_state_size",
        "mamba_n_groups": "n_groups",
        "mamba_n_heads": "mamba_num_heads",
        "mamba_d_head": "mamba_head_dim",
    }
    state_spaces(writer, {ours: values[theirs] for ours, theirs in names.items()})
    writer.add_rope_scaling_finetuned(False)


def nothing(writer: Writer) -> None:
    pass


EPSILONS = ("norm_eps", "layer_norm_epsilon", "rms_norm_eps")


MINICPM = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 0.5}
EARLY = {"embedding_multiplier": 12.0, "residual_multiplier": 0.7, "logits_scaling": 32 / 256}
SCALE = {"attention_multiplier": 8**-0.5}
FALCON_H1_NORMED = replace(
    CASES["falcon-h1-normed"],
    values={**CASES["falcon-h1-normed"].values, "tie_word_embeddings": False},
)
EVERY_FOURTH = replace(CASES["smollm3"], values={"no_rope_layer_interval": 4})
EQUAL = {**CASES["ministral3"].values["rope_parameters"], "mscale_all_dim": 1.0}
FILES: dict[str, tuple[str, Case, Callable[[Writer], None]]] = {
    "smollm3": (
        "smollm3",
        replace(CASES["smollm3"], values={"no_rope_layer_interval": 4}),
        nothing,
    ),
    "olmo2": ("olmo2", CASES["olmo2"], nothing),
    "olmo3": ("olmo2", CASES["olmo3"], nothing),
    "olmo3-scaled": ("olmo2", CASES["olmo3-scaled"], olmo3_scaled),
    "exaone4": ("exaone4", CASES["exaone4"], every_third),
    "exaone4-without-windows": (
        "exaone4",
        Case("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
        nothing,
    ),
    "seed-oss": ("seed_oss", CASES["seed-oss"], nothing),
    "granite": ("granite", CASES["granite"], granite),
    "granite-moe": ("granitemoe", CASES["granite-moe"], granite),
    "granite-moe-shared": ("granitemoe", CASES["granite-moe-shared"], granite_shared),
    "granite4-dense": ("granite", CASES["granite4-dense"], granite),
    "granite4-experts-without-positions": (
        "granitemoe",
        CASES["granite4-experts-without-positions"],
        granite_without_positions,
    ),
    "minicpm": ("minicpm", Case("Granite", {**MINICPM, **SCALE}), minicpm),
    "early-minicpm": (
        "minicpm",
        Case("Granite", {**EARLY, **SCALE}),
        nothing,
    ),
    "hunyuan-dense": ("hunyuan-dense", CASES["hunyuan-dense"], nothing),
    "hunyuan-dense-stretched": ("hunyuan-dense", CASES["hunyuan-dense-stretched"], nothing),
    "ernie4.5": ("ernie4_5", CASES["ernie4.5"], nothing),
    "ernie4.5-moe": (
        "ernie4_5-moe",
        replace(
            CASES["ernie4.5-moe"],
            values={**CASES["ernie4.5-moe"].values, "moe_layer_end_index": 3},
        ),
        ernie_moe,
    ),
    "ministral3": (
        "mistral3",
        Case("Ministral3", {"head_dim": 16, "rope_parameters": EQUAL}),
        ministral,
    ),
    "mistral3": (
        "mistral3",
        replace(CASES["mistral3"], values={"head_dim": 16, "rope_parameters": EQUAL}),
        ministral,
    ),
    "qwen3-vl": ("qwen3vl", CASES["qwen3-vl"], nothing),
    "qwen3-vl-moe": ("qwen3vlmoe", CASES["qwen3-moe"], nothing),
    "qwen2.5-vl": ("qwen2vl", CASES["qwen2.5-vl"], nothing),
    "bitnet": (
        "bitnet",
        replace(CASES["bitnet"], values={**CASES["bitnet"].values, "tie_word_embeddings": True}),
        squared,
    ),
    "gemma4": ("gemma4", CASES["gemma4"], gemma4),
    "gemma4-experts": ("gemma4", CASES["gemma4-experts"], gemma4_experts),
    "gemma4-e": ("gemma4", CASES["gemma4-e"], gemma4_e),
    "granite4-hybrid": ("granitehybrid", CASES["granite4-hybrid"], granite_hybrid),
    "granite4-hybrid-experts": (
        "granitehybrid",
        CASES["granite4-hybrid-experts"],
        granite_hybrid_experts,
    ),
    "falcon-h1": ("falcon-h1", CASES["falcon-h1"], falcon_h1),
    "falcon-h1-normed": ("falcon-h1", FALCON_H1_NORMED, falcon_h1),
    "nemotron-h": ("nemotron_h", CASES["nemotron-h-by-pattern"], nemotron_h),
    "nemotron-h-experts": ("nemotron_h_moe", CASES["nemotron-h"], nemotron_h_experts),
    "lfm2": ("lfm2", CASES["lfm2"], lfm2),
    "lfm2-moe": ("lfm2moe", CASES["lfm2-moe"], lfm2_moe),
}


def converted(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that llama.cpp's converter writes: fused ones of Granite cut in two, those of
    images left out."""
    for name, value in weights.items():
        text = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
        block = "blk." + ".".join(re.findall(r"layers\.(\d+)", text)) + "."
        dense = not any("block_sparse_moe" in each for each in weights)
        if "vision" in name or "visual" in name or "projector" in name:
            continue
        if "input_linear" in name:
            kind = "_exps" if value.ndim == 3 else "" if dense else "_shexp"
            for part, half in zip(("gate", "up"), np.split(value, 2, axis=-2), strict=True):
                yield f"{block}ffn_{part}{kind}.weight", half
        elif "shared_mlp.output_linear" in name and dense:
            yield f"{block}ffn_down.weight", value
        elif "e_score_correction_bias" in name:
            yield f"{block}exp_probs_b.bias", value.reshape(-1)
        elif "_sub_norm" in name:
            yield f"{block}{text.rsplit('.', 2)[1]}.weight", value
        elif name.endswith("expert_bias"):
            yield f"{block}exp_probs_b.bias", value
        elif found := re.search(r"experts\.(\d+)\.w([123])\.", text):
            part = ("gate", "down", "up")[int(found[2]) - 1]
            yield text.replace(f"w{found[2]}.", f"{part}_proj."), value
        elif found := re.search(r"router\.(scale|per_expert_scale)$", name):
            kind = "ffn_gate_inp" if found[1] == "scale" else "ffn_down_exps"
            yield f"{block}{kind}.scale", value
        elif name.endswith("conv.conv.weight"):
            yield text, value[:, 0]
        elif ".mixer.experts." in name:
            yield re.sub(r"backbone\.(.*)mixer", r"model.\1mlp", name), value
        elif found := re.search(r"\.(?:mamba|mixer)\.(\w+)(?:\.\w+)?$", name):
            yield from state_space(name, value, block) if found[1] in SPACES else [(name, value)]
        else:
            yield text, value


SPACES = {
    "in_proj": "in",
    "conv1d": "conv1d",
    "norm": "norm",
    "out_proj": "out",
    "A_log": "a",
    "D": "d",
    "dt_bias": "dt",
}


def state_space(name: str, value: np.ndarray, block: str) -> Iterator[tuple[str, np.ndarray]]:
    """A tensor of Mamba 2, as conversion/mamba.py of llama.cpp writes it."""
    own = re.split(r"\.(?:mamba|mixer)\.", name)[1]
    if own == "A_log":
        yield f"{block}ssm_a", -np.exp(value)[:, None]
    elif own == "D":
        yield f"{block}ssm_d", value[:, None]
    elif own == "dt_bias":
        yield f"{block}ssm_dt.bias", value
    else:
        base, end = own.split(".")
        cut = value[:, 0] if own == "conv1d.weight" else value
        cut = cut.reshape(2, -1) if own == "norm.weight" else cut
        yield f"{block}ssm_{SPACES[base]}.{end}", cut


def multiplied(
    weights: dict[str, np.ndarray], values: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of Falcon-H1, of which llama.cpp's converter multiplies the matrices."""
    gate, down = values["mlp_multipliers"]
    keys, wide = values["mamba_n_groups"] * values["mamba_d_state"], values["mamba_d_ssm"]
    parts = (wide, wide, keys, keys, values["mamba_n_heads"])
    rows = np.repeat(values["ssm_multipliers"], parts) * values["ssm_in_multiplier"]
    read = values["attention_in_multiplier"]
    factors: dict[str, Any] = {
        "down_proj": down,
        "gate_proj": gate,
        "k_proj": values["key_multiplier"] * read,
        "q_proj": read,
        "v_proj": read,
        "o_proj": values["attention_out_multiplier"],
        "out_proj": values["ssm_out_multiplier"],
        "in_proj": rows[:, None],
        "lm_head": values["lm_head_multiplier"],
        "embed_tokens": values["embedding_multiplier"],
    }
    for name, value in weights.items():
        yield name, value * np.float32(factors.get(name.split(".")[-2], 1.0))


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    architecture, case, metadata = FILES[name]
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    text = oracle.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {"rope_theta": 1e4}
    rope = rope.get("full_attention", rope)
    theta, heads = rope["rope_theta"], text.num_attention_heads
    dim = case.values.get("head_dim", text.hidden_size // heads)
    if rope.get("alpha"):  # which the converter writes into the base
        theta *= rope["alpha"] ** (dim / (dim - 2))
    config = {
        **COMMON,
        **case.values,
        "rms_norm_eps": next(getattr(text, key) for key in EPSILONS if hasattr(text, key)),
        "rope_theta": theta,
        "head_dim": dim,
        "sliding_window": getattr(text, "sliding_window", None),
    }
    if name in ("granite4-dense", "granite4-hybrid"):
        config["intermediate_size"] = config.pop("shared_intermediate_size")
    if name == "lfm2":
        config["intermediate_size"] = 32  # two thirds
    if "early" in name:
        assert config["residual_multiplier"] == pytest.approx(1.4 / 4**0.5)
    config.pop("shared_intermediate_size", None)
    config.setdefault("num_experts_per_tok", 2)
    if "ernie" in name:
        config["moe_intermediate_size"] = None
    stored = load_file(tmp_path / "model.safetensors")
    if architecture == "falcon-h1":
        stored = dict(multiplied(stored, case.values))
    weights = dict(converted(stored))
    if architecture == "gemma4":  # of 16 pairs a quarter is rotated
        weights["rope_freqs.weight"] = np.array([1.0] * 4 + [1e30] * 12, np.float32)
    if name == "gemma4-e":  # published files hold keys of layers that read others' too
        weights["blk.5.attn_k.weight"] = np.ones((32, 32), np.float32)
    write_gguf(tmp_path / "model.gguf", architecture, config, weights, metadata=metadata)
    told: list[str] = []
    settings = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    model = load_model(EngineConfig(model=str(tmp_path / "model.gguf"), **settings), told.append)
    expected = oracle_logits(oracle, case.prompts())
    assert_same_logits(prompt_logits(model, case.prompts(), 16), expected)
    assert not any("warning" in line for line in told)


NEMOTRON_H = {
    "general.architecture": "nemotron_h",
    "nemotron_h.block_count": 3,
    "nemotron_h.attention.head_count_kv": [0, 2, 0],
    "nemotron_h.feed_forward_length": [0, 0, 48],
}
OF_LAYERS = {"blk.0.ssm_in.weight": (1, 1), "blk.1.attn_q.weight": (1, 1)}


@pytest.mark.parametrize(
    ("metadata", "shapes", "why"),
    [
        ({}, OF_LAYERS, "its layer 2 has none of the tensors ssm_in, .*ffn_up"),
        ({"nextn_predict_layers": 3}, {}, "its nextn_predict_layers is 3, of 3 layers in"),
        ({"attention.head_count_kv": [0, 2]}, None, "head_count_kv has 2 entries for 3 layers"),
        ({"feed_forward_length": [0, 0, 0]}, None, r"feed_forward_length is \[0, 0, 0\]; one pos"),
    ],
)
def test_layers_of_nemotron_h_say_what_they_are(
    metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None, why: str
) -> None:
    given = {**NEMOTRON_H, **{f"nemotron_h.{key}": value for key, value in metadata.items()}}
    whole = {**OF_LAYERS, "blk.2.ffn_up.weight": (48, 32)}
    with pytest.raises(ModelError, match=why):
        config_of(given, whole if shapes is None else shapes, {})


def test_blocks_of_nemotron_h_that_predict_further_tokens_are_left_out() -> None:
    further = {"nemotron_h.block_count": 4, "nemotron_h.nextn_predict_layers": 1}
    further |= {"nemotron_h.attention.head_count_kv": [0, 2, 0, 2]}
    sizes = {"embedding_length": 32, "attention.head_count": 4, "attention.key_length": 8}
    sizes |= {"ssm.time_step_rank": 2, "ssm.inner_size": 16, "ssm.state_size": 4}
    sizes |= {"ssm.group_count": 1, "ssm.conv_kernel": 4}
    metadata = {**NEMOTRON_H, **further, **{f"nemotron_h.{k}": v for k, v in sizes.items()}}
    shapes = {**OF_LAYERS, "blk.2.ffn_up.weight": (48, 32), "token_embd.weight": (101, 32)}
    found = describe_gguf(
        config_of(metadata, shapes, {}), "nemotron_h", GGUF_ARCHITECTURES["nemotron_h"]
    )
    assert found.layers == 3
    assert found.architecture.unused[-1] == "blk.3."


def test_phi_4_mini_rotates_a_part_of_each_head_by_factors(tmp_path: Path) -> None:
    short, long = longrope(1, 3)
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    rope |= {"rope_theta": 1e4, "partial_rotary_factor": 0.75}
    values = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    case = Case("Phi3", {**values, "tie_word_embeddings": True}, longest=100)
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    extra = {
        "rope_factors_short.weight": np.array(short, np.float32),
        "rope_factors_long.weight": np.array(long, np.float32),
    }

    def metadata(writer: Writer) -> None:
        writer.add_rope_dimension_count(6)
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(256 / 64) / np.log(64))))

    config = {**COMMON, "rms_norm_eps": oracle.config.rms_norm_eps}
    weights = load_file(tmp_path / "model.safetensors")
    write_gguf(tmp_path / "m.gguf", "phi3", config, weights, metadata=metadata, extra=extra)
    settings = {"max_num_seqs": 2, "max_model_len": 128}
    model = load_model(EngineConfig(model=str(tmp_path / "m.gguf"), **settings))
    prompts = [case.prompts()[0]]
    assert_same_logits(prompt_logits(model, prompts, 16), oracle_logits(oracle, prompts))


def test_every_record_that_is_named_is_known() -> None:
    for architecture in (*GGUF_ARCHITECTURES.values(), *GGUF_MIXTURES.values()):
        assert {architecture.record, architecture.windowed or architecture.record} <= {*DECODERS}


def test_an_answer_of_gemma_4_ends_with_its_turn_or_where_a_tool_would_answer() -> None:
    """Whose mark files have as a token of the user's, not as a control token."""
    tokens, listed = ["<eos>", "<turn|>", "<|tool_response>", "<|turn>", "a"], STRINGS()
    raw = b"".join(struct.pack("<Q", len(token)) + token.encode() for token in tokens)
    listed.read(raw, 0, len(tokens))
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": listed,
        "tokenizer.ggml.token_type": [3, 3, 4, 3, 1],
        "tokenizer.ggml.eos_token_id": 1,
    }
    config = config_of(metadata, {"token_embd.weight": (len(tokens), 8)}, {})
    assert sorted(config["eos_token_id"]) == [0, 1, 2]


@pytest.mark.parametrize("pattern", ["LLLG", [0.5, "x"], -1])
def test_a_pattern_of_windows_of_another_kind_is_refused(pattern: Any) -> None:
    metadata = {
        "general.architecture": "olmo2",
        "olmo2.block_count": 4,
        "olmo2.attention.sliding_window": 9,
        "olmo2.attention.sliding_window_pattern": pattern,
    }
    with pytest.raises(ModelError, match=r"sliding_window_pattern is .*; a number, or a truth"):
        config_of(metadata, {}, {})


FUSED = {
    "llama": (CASES["mixtral"], "block_sparse_moe.experts.w1", "block_sparse_moe.experts.w3"),
    "qwen3moe": (CASES["qwen3-moe"], "mlp.experts.gate_proj", "mlp.experts.up_proj"),
    "granitemoe": (CASES["granite-moe"], "", ""),
}


@pytest.mark.parametrize("name", FUSED)
def test_gates_and_ups_of_experts_may_stand_in_one_tensor(tmp_path: Path, name: str) -> None:
    """As llama.cpp's converter writes them with `--fuse-gate-up-exps`."""
    case, gate, up = FUSED[name]
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    weights, fused = load_file(tmp_path / "model.safetensors"), {}
    layer = re.compile(r"layers\.(\d+)\.")
    for key in [*weights]:
        found = layer.search(key)
        if "input_linear" in key and found:
            fused[f"blk.{found[1]}.ffn_gate_up_exps.weight"] = weights.pop(key)
        elif gate and re.search(r"\.experts\.\d+\.(w1|w3|gate_proj|up_proj)\.", key) and found:
            del weights[key]
    read = load_file(tmp_path / "model.safetensors")
    count = len({m[1] for key in read if (m := re.search(r"\.experts\.(\d+)\.", key))})
    for number in range(4 if gate else 0):
        halves = [
            np.stack(
                [
                    read[f"model.layers.{number}.{each.replace('experts', f'experts.{e}')}.weight"]
                    for e in range(count)
                ]
            )
            for each in (gate, up)
        ]
        fused[f"blk.{number}.ffn_gate_up_exps.weight"] = np.concatenate(halves, axis=1)
    config = {**COMMON, **case.values, "rms_norm_eps": oracle.config.rms_norm_eps}
    config["rope_theta"] = oracle.config.rope_parameters["rope_theta"]
    config.setdefault("num_experts_per_tok", 2)
    metadata = granite if name == "granitemoe" else nothing
    write_gguf(tmp_path / "m.gguf", name, config, {**weights, **fused}, metadata=metadata)
    settings = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    model = load_model(EngineConfig(model=str(tmp_path / "m.gguf"), **settings))
    expected = oracle_logits(oracle, case.prompts())
    assert_same_logits(prompt_logits(model, case.prompts(), 16), expected)


ONE_QKV = {
    "llama": (Case("Llama", {"attention_bias": True}), {"q": 4, "k": 2}, nothing),
    "qwen2": (CASES["qwen2"], {}, nothing),
    "ernie4_5": (CASES["ernie4.5"], {}, nothing),
}


@pytest.mark.parametrize("name", ONE_QKV)
def test_queries_keys_and_values_may_stand_in_one_tensor(tmp_path: Path, name: str) -> None:
    """As llama.cpp's converter writes them with `--fuse-qkv`."""
    case, permuted, metadata = ONE_QKV[name]
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    weights, fused = load_file(tmp_path / "model.safetensors"), {}
    for number in range(4):
        for end in ("weight", "bias"):
            own = f"model.layers.{number}.self_attn."
            if f"{own}q_proj.{end}" not in weights:
                continue
            found = {kind: weights.pop(f"{own}{kind}_proj.{end}") for kind in "qkv"}
            for kind, heads in permuted.items():
                found[kind] = permute(found[kind], heads)
            fused[f"blk.{number}.attn_qkv.{end}"] = np.concatenate([found[kind] for kind in "qkv"])
    if case.values.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    config = {**COMMON, **case.values, "rms_norm_eps": oracle.config.rms_norm_eps}
    config["rope_theta"] = oracle.config.rope_parameters["rope_theta"]
    write_gguf(tmp_path / "m.gguf", name, config, {**weights, **fused}, metadata=metadata)
    settings = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    model = load_model(EngineConfig(model=str(tmp_path / "m.gguf"), **settings))
    expected = oracle_logits(oracle, case.prompts())
    assert_same_logits(prompt_logits(model, case.prompts(), 16), expected)


SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 1,
}


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_0", "Q8_0", "Q4_K", "IQ4_NL"])
def test_rotary_pairs_that_are_neighbours_come_apart_in_every_format(
    kind: str, tmp_path: Path
) -> None:
    ernie = {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5"}
    tiny_llama(tmp_path, **SIZES, **ernie)
    config = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512}
    weights = load_file(tmp_path / "model.safetensors")
    path = tmp_path / "model.gguf"
    config["rms_norm_eps"] = 1e-5
    meant = write_gguf(path, "ernie4_5", config, weights, lambda name: kind)
    model = load_model(EngineConfig(model=str(path), max_num_seqs=2, max_model_len=64))
    (op,) = (op for op in model.program.ops if isinstance(op, AttentionInput))
    order = [*range(0, 64, 2), *range(1, 64, 2)]
    q, k, v = (meant[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv")
    halves = [rows.reshape(-1, 64, 256)[:, order].reshape(-1, 256) for rows in (q, k)]
    found = op.qkv.rows(np.arange(op.qkv.out_features, dtype=np.int32))
    assert (found == np.concatenate([*halves, v])).all()


@pytest.mark.parametrize("cut", [1, 3, 8, 11, 40])
def test_blocks_that_end_within_a_head_are_joined(cut: int) -> None:
    rows = np.arange(40 * 2, dtype=np.float32).reshape(40, 2)
    blocks = (rows[start : start + cut].copy() for start in range(0, 40, cut))
    found = list(in_halves(blocks, (8, 6)))
    order = [0, 2, 4, 1, 3, 5, 6, 7]
    assert all(len(block) % 8 == 0 for block in found)
    assert (np.concatenate(found) == rows.reshape(5, 8, 2)[:, order].reshape(40, 2)).all()
