"""What config.json may say, and in which sentence it is refused when it says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ockham.core.errors import ModelError
from ockham.model.program.architectures import ARCHITECTURES
from ockham.model.program.description import describe, read_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "silu",
}


MINISTRAL3 = {"architectures": ["Ministral3ForCausalLM"], "num_key_value_heads": 2}


def llama3(**changes: Any) -> dict[str, Any]:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4}
    return {"rope_scaling": {**rope, **changes}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported"),
        ({"architectures": None, "model_type": "bert"}, r"no architecture \(model_type 'bert'\)"),
        ({"hidden_size": None}, "lacks 'hidden_size', which LlamaForCausalLM needs"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers .* must be a positive integer, not '4'"),
        ({"vocab_size": 0}, "vocab_size .* must be a positive integer, not 0"),
        ({"num_key_value_heads": 3}, r"heads of config.json \(4\) is not a multiple of .*\(3\)"),
        ({"hidden_act": "relu3"}, "activation 'relu3' is not supported; supported are silu"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps .* must be a positive number"),
        ({"eos_token_id": "</s>"}, "eos_token_id .* must be token ids"),
        ({"hidden_act": [1, 2]}, r"the activation \[1, 2\] is not supported"),
        ({"partial_rotary_factor": 1.5}, "must be a number above 0 and at most 1, not 1.5"),
        ({"partial_rotary_factor": "x"}, "must be a number above 0 and at most 1, not 'x'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor to 0.5, which LlamaForCausalLM"),
        ({"rope_scaling": {"type": "mrope"}}, "rotary embedding 'mrope' is not supported; .*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' of config.json lacks 'factor'"),
        ({"rope_scaling": "linear"}, "rotary embedding of config.json must be an object"),
        ({"rope_theta": "large"}, "rope_theta .* must be a positive number, not 'large'"),
        (llama3(factor="8"), "factor .* must be a positive number, not '8'"),
        ({"head_dim": 7}, "7 elements of a head cannot be rotated in pairs"),
        (llama3(low_freq_factor=None), "'llama3' of config.json lacks 'low_freq_factor'"),
    ],
)
def test_what_is_not_supported_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        describe({**LLAMA, **change})


def test_an_unknown_architecture_is_refused_with_all_those_known() -> None:
    with pytest.raises(ModelError) as error:
        describe({**LLAMA, "architectures": ["T5ForConditionalGeneration"]})
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_longrope_factors_of_the_wrong_number_are_refused() -> None:
    rope = {"type": "su", "short_factor": [1.0] * 3, "long_factor": [1.0] * 4}
    with pytest.raises(ModelError, match=r"short_factor .* has 3 entries, but 4 pairs"):
        describe({**LLAMA, "architectures": ["Phi3ForCausalLM"], "rope_scaling": rope})


def test_layer_types_must_be_known_and_one_for_each_layer() -> None:
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}
    with pytest.raises(ModelError, match="'chunked_attention' is not supported"):
        describe({**qwen, "layer_types": ["chunked_attention"] * 4})
    with pytest.raises(ModelError, match=r"layer_types .* has 3 entries for 4 layers"):
        describe({**qwen, "layer_types": ["full_attention"] * 3})


def test_layers_of_lfm2_attend_or_convolve() -> None:
    lfm2 = {**LLAMA, "architectures": ["Lfm2ForCausalLM"], "num_key_value_heads": 4}
    with pytest.raises(ModelError, match=r"'mamba' is not supported; .* full_attention and conv"):
        describe({**lfm2, "layer_types": ["full_attention", "mamba", "conv", "conv"]})
    with pytest.raises(ModelError, match=r"layer_types .* has 1 entries for 4 layers"):
        describe({**lfm2, "layer_types": ["conv"]})
    with pytest.raises(ModelError, match=r"conv_L_cache of config\.json .* not 0"):
        describe({**lfm2, "full_attn_idxs": [1], "conv_L_cache": 0})
    assert describe({**lfm2, "full_attn_idxs": [1]}).convolutions == (0, 2, 3)


def test_delta_rules_have_sizes_that_fit() -> None:
    qwen = {**LLAMA, "architectures": ["Qwen3_5ForCausalLM"], "num_key_value_heads": 4}
    found = describe(qwen)
    assert found.recurrent is not None
    assert found.recurrent.layers == (0, 1, 2)
    assert [group.ends for group in found.groups] == [False, True, False]
    with pytest.raises(ModelError, match=r"linear_num_value_heads of config\.json \(6\) is not a"):
        describe({**qwen, "linear_num_value_heads": 6, "linear_num_key_heads": 4})
    with pytest.raises(ModelError, match=r"'mamba' is not supported; .* and linear_attention"):
        describe({**qwen, "layer_types": ["mamba", *["full_attention"] * 3]})
    with pytest.raises(ModelError, match=r"linear_conv_kernel_dim of config\.json .* not 0"):
        describe({**qwen, "linear_conv_kernel_dim": 0})
    attending = describe({**qwen, "layer_types": ["full_attention"] * 4})
    assert attending.recurrent is None


def test_values_of_the_wrong_kind_are_refused_wherever_they_stand() -> None:
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}
    with pytest.raises(ModelError, match="a value of the wrong kind"):
        describe({**qwen, "max_window_layers": "two"})


def test_more_experts_per_token_than_experts_are_refused() -> None:
    mixtral = {**LLAMA, "architectures": ["MixtralForCausalLM"], "num_key_value_heads": 2}
    with pytest.raises(ModelError, match=r"num_experts_per_tok \(9\) .* exceeds"):
        describe({**mixtral, "num_local_experts": 8, "num_experts_per_tok": 9})


@pytest.mark.parametrize(
    ("types", "found"),
    [
        (["attention", "conv", "attention", "mamba"], "'conv' is not supported; .* and mamba"),
        (None, "layer_types of config.json must be a list of the kinds of 4 layers, not None"),
        (["attention"], "layer_types of config.json has 1 entries for 4 layers"),
    ],
)
def test_layers_of_granite_4_attend_or_have_state_spaces(types: Any, found: str) -> None:
    granite = {**LLAMA, "architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": types}
    with pytest.raises(ModelError, match=found):
        describe(granite)


def test_state_spaces_have_sizes_that_fit() -> None:
    granite = {
        **LLAMA,
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "num_local_experts": 0,
    }
    found = describe({**granite, "mamba_n_heads": 6, "mamba_n_groups": 3})
    assert found.recurrent is not None
    assert found.recurrent.layers == (0, 2)
    assert [group.ends for group in found.groups] == [False, True, False]
    with pytest.raises(ModelError, match=r"mamba_n_heads of config\.json \(6\) is not a multiple"):
        describe({**granite, "mamba_n_heads": 6, "mamba_n_groups": 4})
    with pytest.raises(ModelError, match=r"time_step_limit of config\.json is \[1, 0\.5\]; it"):
        describe({**granite, "time_step_limit": [1, 0.5]})
    with pytest.raises(ModelError, match=r"mamba_d_state of config\.json .* not 0"):
        describe({**granite, "mamba_d_state": 0})


FALCON_H1 = {
    **LLAMA,
    "architectures": ["FalconH1ForCausalLM"],
    "num_key_value_heads": 2,
    "mamba_d_ssm": 48,
    "mamba_n_heads": 6,
    "mamba_n_groups": 2,
}


def test_blocks_side_by_side_keep_each_its_own() -> None:
    found = describe(FALCON_H1)
    assert found.blocks(1) == ("attention", "recurrent", "feed_forward")
    assert [group.layers for group in found.groups] == [(0, 1, 2, 3)] * 3
    assert [bool(group.row_width) for group in found.groups] == [False, True, True]
    assert (found.group_of(1), found.group_of(1, rows=True)) == (0, 1)
    assert found.recurrent is not None
    assert found.recurrent.value_dim == 8


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"mamba_d_head": 10}, r"mamba_d_ssm of config\.json is 48, and not that of 6 heads"),
        ({"mamba_n_heads": 10}, r"mamba_d_ssm of config\.json is 48, and not that of 10 heads"),
        ({"ssm_multipliers": [1.0] * 4}, r"ssm_multipliers of .* must be 5 positive numbers"),
        ({"mlp_multipliers": [1.0, -1.0]}, r"mlp_multipliers of .* must be 2 positive numbers"),
        ({"key_multiplier": 0}, r"key_multiplier of config\.json must be a positive number"),
    ],
)
def test_sizes_and_multipliers_of_falcon_h1_fit(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        describe({**FALCON_H1, **given})


@pytest.mark.parametrize(("rope", "growth"), [({}, "'a'"), ({"llama_4_scaling_beta": -1}, "-1")])
def test_queries_grow_by_a_positive_number(rope: dict[str, Any], growth: str) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    yarn |= {"llama_4_scaling_beta": "a", **rope}
    with pytest.raises(ModelError, match=f"queries that grow by {growth} with their position need"):
        describe({**LLAMA, **MINISTRAL3, "rope_scaling": yarn})


def test_a_stretched_base_is_a_positive_number() -> None:
    rope = {"rope_type": "dynamic", "alpha": "wide", "factor": 1.0}
    with pytest.raises(ModelError, match=r"base 10000\.0, stretched by 'wide', is not supported"):
        describe({**LLAMA, "architectures": ["HunYuanDenseV1ForCausalLM"], "rope_scaling": rope})


@pytest.mark.parametrize("tied", [(True, False), (False, True), (True, True)])
def test_either_part_may_say_that_embeddings_are_tied(tied: tuple[bool, bool]) -> None:
    text = {**LLAMA, **MINISTRAL3, "tie_word_embeddings": tied[1]}
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}
    assert describe({**config, "tie_word_embeddings": tied[0]}).tied_embeddings


def test_early_models_of_text_and_images_say_what_their_text_part_is_beside_the_rest() -> None:
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    flat = {**LLAMA, "architectures": ["Qwen2_5_VLForConditionalGeneration"], "rope_scaling": rope}
    flat["vision_config"] = {"hidden_size": 16}
    described = describe(flat)
    assert described.hidden_size == 32
    assert described.ropes[0] is not None
    assert described.ropes[0].kind == "default"
    nested = {"architectures": flat["architectures"], "text_config": flat}
    assert describe(nested).constants() == described.constants()


def test_biases_of_ernie_are_refused() -> None:
    ernie = {**LLAMA, "architectures": ["Ernie4_5ForCausalLM"], "num_key_value_heads": 2}
    with pytest.raises(ModelError, match="sets use_bias: projections with biases"):
        describe({**ernie, "use_bias": True})


@pytest.mark.parametrize("given", [[4], [1, 1], [2, 1], ["1"], [True], 1, [0, 1, 2, 3]])
def test_layers_without_attention_must_be_some_of_the_layers(given: Any) -> None:
    with pytest.raises(ModelError, match=r"layers_without_attention of config\.json must be"):
        describe({**LLAMA, "layers_without_attention": given})


def test_a_layer_without_attention_keeps_no_state() -> None:
    described = describe({**LLAMA, "layers_without_attention": [0, 2]})
    assert [group.layers for group in described.groups] == [(1, 3)]


def test_layers_with_the_same_window_share_a_group() -> None:
    gemma = describe({**LLAMA, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 13})
    sliding, full = gemma.groups
    assert sliding.window == 4096
    assert full.window is None
    assert full.layers == (5, 11)
    assert [gemma.group_of(layer) for layer in (0, 5, 11, 12)] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({}, 2048),
        ({"type": "linear", "factor": 4.0}, 2048),
        ({"type": "dynamic", "factor": 4.0}, 8192),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
            8192,
        ),
    ],
)
def test_the_limit_of_positions_includes_what_scaling_adds(
    rope: dict[str, Any], positions: int
) -> None:
    assert describe({**LLAMA, "rope_scaling": rope}).max_position_embeddings == positions


def test_a_directory_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config.json"):
        read_config(tmp_path)
    for text in ("{broken", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config.json"):
            read_config(tmp_path)
